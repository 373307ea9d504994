"""Makes the notebook of its plain script and executes it in the folder of the tour's files.

python docs/make_notebook.py
"""

import jupytext
import nbformat
from make_pictures import TOUR
from nbclient import NotebookClient
from pages import DOCS, reader_environment


def main() -> None:
    """Write docs/paper_figure.ipynb, with its outputs."""
    notebook = jupytext.read(DOCS / "paper_figure.py")
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    environment = {**reader_environment(), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    NotebookClient(notebook, resources={"metadata": {"path": str(TOUR)}}).execute(env=environment)
    for number, cell in enumerate(notebook.cells):  # the same file from the same run
        cell["id"] = f"cell-{number}"
        cell.metadata.clear()
    for key in set(notebook.metadata) - {"kernelspec", "language_info"}:
        del notebook.metadata[key]
    nbformat.write(notebook, DOCS / "paper_figure.ipynb")


if __name__ == "__main__":
    main()
