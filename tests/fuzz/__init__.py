"""A seeded fuzzer for all that reads what others hand in.

`targets` says what is read and how, `mutators` damages what nenya's own writers wrote, `runner` reads each case in a
process of its own under limits and says what came of it. `python -m fuzz.runner TARGET FIRST STOP`, from the folder
above, does the same by hand; `corpus/TARGET/` holds cases that went wrong once.
"""
