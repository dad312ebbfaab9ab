"""What tests of decoding methods need: scorers whose laws are known, exact enumeration, laws to inherit, planted faults.

Public: third parties test their methods with the same tools. Nothing here imports pytest.
"""

from decodery.testing.any_order import TabularOrders as TabularOrders
from decodery.testing.any_order import any_order_language_model as any_order_language_model
from decodery.testing.any_order import toy_any_order_model as toy_any_order_model
from decodery.testing.denoisers import CanvasScorer as CanvasScorer
from decodery.testing.denoisers import OracleDenoiser as OracleDenoiser
from decodery.testing.denoisers import ScriptedDenoiser as ScriptedDenoiser
from decodery.testing.denoisers import TabularDenoiser as TabularDenoiser
from decodery.testing.denoisers import confident as confident
from decodery.testing.denoisers import denoising_language_model as denoising_language_model
from decodery.testing.denoisers import toy_diffusion_model as toy_diffusion_model
from decodery.testing.drafters import adversarial_draft as adversarial_draft
from decodery.testing.drafters import drafting_method as drafting_method
from decodery.testing.drafters import oracle_draft as oracle_draft
from decodery.testing.drafters import random_draft as random_draft
from decodery.testing.edges import EdgeNoise as EdgeNoise
from decodery.testing.edges import impossible_tokens as impossible_tokens
from decodery.testing.enumeration import ScriptedChance as ScriptedChance
from decodery.testing.enumeration import enumerate_outcomes as enumerate_outcomes
from decodery.testing.faults import planted_faults as planted_faults
from decodery.testing.goodness import GoodnessOfFit as GoodnessOfFit
from decodery.testing.goodness import goodness_of_fit as goodness_of_fit
from decodery.testing.goodness import total_variation as total_variation
from decodery.testing.hosts import ByteTokenizer as ByteTokenizer
from decodery.testing.hosts import LetterTokenizer as LetterTokenizer
from decodery.testing.hosts import SmallLanguageModel as SmallLanguageModel
from decodery.testing.hosts import scripted_language_model as scripted_language_model
from decodery.testing.hosts import toy_language_model as toy_language_model
from decodery.testing.inserters import InserterScorer as InserterScorer
from decodery.testing.inserters import inserting_language_model as inserting_language_model
from decodery.testing.inserters import random_script as random_script
from decodery.testing.inserters import text_law as text_law
from decodery.testing.marks import LayerMarks as LayerMarks
from decodery.testing.method_laws import DrafterLaws as DrafterLaws
from decodery.testing.method_laws import MethodLaws as MethodLaws
from decodery.testing.outputs import exact_outputs as exact_outputs
from decodery.testing.outputs import sampled_outputs as sampled_outputs
from decodery.testing.outputs import watched as watched
from decodery.testing.scorers import PrefixScorer as PrefixScorer
from decodery.testing.scorers import ScriptedScorer as ScriptedScorer
from decodery.testing.scorers import TabularScorer as TabularScorer
from decodery.testing.scorers import story_scorer as story_scorer
from decodery.testing.scorers import visible_prefixes as visible_prefixes
from decodery.testing.verifier_laws import VerifierLaws as VerifierLaws
