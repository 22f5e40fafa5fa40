"""The page report.html: what is on it, its charts and pictures, its template."""
