-- psql runs this file when the server first starts. It creates two databases, each with a user who may enter no other one.
-- Passwords are read from files. A statement that fails is not logged, because the log would show a password.
SET log_min_error_statement = panic;

REVOKE CONNECT ON DATABASE postgres, template1 FROM PUBLIC;

\set password `cat /run/secrets/anitune-password`
CREATE ROLE anitune LOGIN PASSWORD :'password';
CREATE DATABASE anitune OWNER anitune;
REVOKE ALL ON DATABASE anitune FROM PUBLIC;

\set password `cat /run/secrets/mlflow-password`
CREATE ROLE mlflow LOGIN PASSWORD :'password';
CREATE DATABASE mlflow OWNER mlflow;
REVOKE ALL ON DATABASE mlflow FROM PUBLIC;
