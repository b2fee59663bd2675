"""`python -m collab_plugin`: the same as the `collab-plugin` command."""

from collab_plugin.cli import main

if __name__ == "__main__":
    main(prog_name="collab-plugin")
