"""How a question is answered follows how hard it looks: `diffadapt`."""
