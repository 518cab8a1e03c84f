"""The methods of translation by a guided reverse SDE, one paper per file; `composition` runs them.

To add a method, write a file that defines a `Method`, and add one line to `METHODS`.
The page lists them in this order, after the task's own.
"""

from cdsde.diffusion.methods.contrastive_sde import CONTRASTIVE_SDE
from cdsde.diffusion.methods.cyclediffusion import CYCLEDIFFUSION
from cdsde.diffusion.methods.ddib import DDIB
from cdsde.diffusion.methods.egsde import EGSDE
from cdsde.diffusion.methods.ilvr import ILVR
from cdsde.diffusion.methods.method import Method
from cdsde.diffusion.methods.sddm import SDDM
from cdsde.diffusion.methods.sdedit import SDEDIT

METHODS: dict[str, Method] = {
    m.name: m for m in (CONTRASTIVE_SDE, EGSDE, SDDM, CYCLEDIFFUSION, DDIB, ILVR, SDEDIT)
}
