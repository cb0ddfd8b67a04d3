"""`python -m p2pmesh.peer` is `p2pmesh up`."""

from p2pmesh.cli.up import up

if __name__ == "__main__":
    up(prog_name="python -m p2pmesh.peer")
