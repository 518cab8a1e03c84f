"""Feature networks of the evaluation: images → features that metrics compare.

The networks are linen modules without state, float32, NHWC, for inference only; `__call__` includes
the preprocessing. Parameters have their published names; `evaluate.extractors` loads them.
"""

from cdsde.networks.features.dino import DINO
from cdsde.networks.features.efficientnet import EfficientNetLite0
from cdsde.networks.features.inception import InceptionV3
from cdsde.networks.features.lpips import LPIPSVGG, LPIPSAlex, LPIPSSqueeze

__all__ = ["DINO", "EfficientNetLite0", "InceptionV3", "LPIPSAlex", "LPIPSSqueeze", "LPIPSVGG"]
