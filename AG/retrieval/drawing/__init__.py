"""Pictures and pages: figures, curves, the HTML report."""
