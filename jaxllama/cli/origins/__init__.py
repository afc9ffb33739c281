"""The command lines of the origin systems: their flags, and the commands of ours they become."""

from jaxllama.cli.origins.exllama import EXLLAMA
from jaxllama.cli.origins.llama2c import LLAMA2C
from jaxllama.cli.origins.llama_burn import LLAMA_BURN
from jaxllama.cli.origins.rama import RAMA
from jaxllama.cli.origins.rllama import RLLAMA

ORIGINS = {each.name: each for each in (RLLAMA, RAMA, LLAMA2C, LLAMA_BURN, EXLLAMA)}
