"""The methods of translation by a guided reverse SDE, one paper a file.

A new method is a new file with a `Method` in it, and one line here. `composition` runs them.
"""

from cdsde.diffusion.methods.contrastive_sde import CONTRASTIVE_SDE
from cdsde.diffusion.methods.egsde import EGSDE
from cdsde.diffusion.methods.ilvr import ILVR
from cdsde.diffusion.methods.method import Method
from cdsde.diffusion.methods.sdedit import SDEDIT

METHODS: dict[str, Method] = {m.name: m for m in (CONTRASTIVE_SDE, EGSDE, SDEDIT, ILVR)}
