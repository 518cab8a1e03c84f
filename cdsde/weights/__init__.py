"""Where the parameters of networks come from: checkpoints, shipped files, other code bases."""
