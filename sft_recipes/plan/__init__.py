"""What a run will take, before anything is trained.

devices      what can be planned for                     model, memory  what a device holds, by arithmetic
trace        what autograd holds, read off the model     shapes       a model to the numbers of that arithmetic
compute      operations, hours, cost                     fitting      the smallest change that makes it fit
sharding     FSDP2 among processes that are not there    planning     all of it; `tables` prints it
lowering     what to lower where memory has run out
"""

from .lowering import lowered
from .memory import ENGINES
from .planning import Machine, machine, plan, planned

__all__ = ["ENGINES", "Machine", "lowered", "machine", "plan", "planned"]
