"""The trainer, floor by floor on TRL's `SFTTrainer`; a recipe's own stands on the highest.

step         each step as declared (promises 5 and 6)         lasting      it outlives its machine, and stops when told
streaming    it may learn from a stream                       judged       by what it generates (promise 8)

What they stand on: batches, loss, tally (rows to exact sums), guards (steps that cannot be used), unprepared (an evaluation before
training), faults (memory that ran out, in one line).
"""
