"""Simulated worlds: a whole store over simulated disks, driven beside a reference model.

`disk` fails as disks do, `machine` holds the disks and runs one process after another on
them with a seeded clock, scheduler and dice, `model` says what must come out, `world`
plays and checks, `checks` holds the promises. One seed replays one world.
"""
