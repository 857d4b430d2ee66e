-- Run once, on an empty volume. POSTGRES_DB names the platform's own database; these two keep to themselves.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
