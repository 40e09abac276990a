"""What this project says of a GPU, measured on one: `make gpu`.

__main__     the command                                table        its figures, and how they are written down
device       what is measured on, its clock and memory  models       real shapes, random weights
exact        tree rows, NF4, noise                      merging      the merge proof
sides        a case of training, ours and TRL's         baton        two trainings that take turns
fast         their speed, and what `plan` predicted     journey      the main job at its tiny scale
picture      the bars
"""
