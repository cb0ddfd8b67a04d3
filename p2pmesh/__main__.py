"""`python -m p2pmesh` is `p2pmesh`."""

from p2pmesh.cli.main import main

if __name__ == "__main__":
    main(prog_name="p2pmesh")
