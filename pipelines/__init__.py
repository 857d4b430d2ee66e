"What runs every day: the flow, the notebook engine, the reports, and the job notebooks."
