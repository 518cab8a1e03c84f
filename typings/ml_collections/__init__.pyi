"""What this project uses of ml_collections. The keys of a config are known at run time only."""

from ml_collections import config_dict as config_dict
from ml_collections import config_flags as config_flags
from ml_collections.config_dict import ConfigDict as ConfigDict
