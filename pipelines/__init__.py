"What runs every day: the flow, the notebook engine, the reports, and the job notebooks."

import sys

# jsonschema, which Prefect and nbformat import, builds a grammar for IRIs at import when it finds this package (JupyterLab
# brings it): more than a second of every run for a format that nothing here checks. None makes its import fail.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
