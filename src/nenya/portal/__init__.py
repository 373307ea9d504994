"""The web portal: plain data and selections, figures made of them, and the page that wires the two."""
