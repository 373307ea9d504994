"""The web portal: data, selections, figures and the page that connects them."""
