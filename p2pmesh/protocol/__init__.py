"""The mesh: no I/O, no clock, no dice of its own. `machine.handle(event, now)` returns effects."""
