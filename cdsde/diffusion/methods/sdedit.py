r"""SDEdit (Meng et al. 2022, arXiv 2108.01073): the reverse SDE starts from the perturbed source.

y_{M-1} = √ᾱ_{M-1} x + √(1-ᾱ_{M-1}) e,   then the unguided reverse SDE down to level 0
"""

from __future__ import annotations

from cdsde.diffusion.methods.method import Method, start_setting

SDEDIT = Method(name="sdedit", title="SDEdit", settings={"start": start_setting(500)})
