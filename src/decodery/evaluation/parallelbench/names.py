"""The people of the published waiting lines: 142 first and 142 last names, which make 20 164 items."""

FIRST = tuple(
    """
    Ada Adam Agnes Alan Albert Alice Alma Amir Amos Anders Andre Anita Anna Anton Arno Arthur Astrid Aurora Axel Barbara
    Basil Beata Ben Berta Birgit Boris Bruno Camilla Carl Carmen Cecil Celia Clara Claude Colin Cora Cyril Dagmar Damian
    Daniel Daria David Delia Dennis Diana Dora Doris Edgar Edith Edwin Elena Eli Ella Elmar Elsa Emil Emma Enzo Erik Esther
    Eva Fabian Fanny Felix Flora Frank Frida Gabriel Gerda Gloria Greta Gustav Hanna Harald Hector Heidi Helen Henry Hilda
    Hugo Ian Ida Igor Ilona Ines Ingrid Irene Iris Isaac Ivan Ivy Jacob Jana Jasper Joel Johan Jonas Judith Julia Karin Karl
    Kaspar Kira Klara Klaus Lara Laura Lena Leo Leon Lidia Linus Lisa Louis Lucas Lucy Luna Magnus Malte Marco Maria Martha
    Max Mia Milo Mira Monica Nadia Nils Nina Noah Nora Olaf Olga Oscar Otto Paula Petra Quentin Rita Robin Rosa
    """.split()  # noqa: SIM905
)
LAST = tuple(
    """
    Abbott Adler Ahlberg Albers Alvarez Amato Andrade Arnold Ashby Bailey Baker Barnes Bauer Becker Bellini Bennett Berger
    Bianchi Bishop Blanc Boone Brandt Brooks Bryant Burke Byrne Calder Carlson Carter Castro Chang Clarke Cohen Collins Conti
    Cooper Costa Cross Curtis Dahl Dalton Davis Dekker Delgado Dixon Donati Doyle Duarte Dubois Duncan Eklund Ellis Engel
    Evans Faber Farrell Ferrari Fischer Fleming Flores Forsberg Foster Franco Fuchs Gallo Garcia Garner Gerber Gibson Gomez
    Graham Grant Greene Haas Hale Hansen Harper Hayes Heller Hoffman Holm Horvath Hughes Ibarra Jansen Jensen Kaiser Keller
    Kelly Klein Koch Kovacs Kramer Krause Lambert Lang Larsen Laurent Lehmann Lewis Lindgren Lopez Lorenz Marino Martin Mason
    Mercer Meyer Miller Moreau Morgan Moser Murphy Navarro Nelson Neumann Novak Olsen Orlando Ortega Palmer Parker Petit Porter
    Quinn Ramos Reyes Richter Rossi Rowe Santos Schmidt Silva Steiner Torres Vargas Vogel Wagner Weber Wright Young Zimmer
    """.split()  # noqa: SIM905
)
NAMES = tuple(f"{first} {last}" for first in FIRST for last in LAST)
