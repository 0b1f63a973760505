-- Run by psql when the server is first started: two databases, each with a user who may enter no other one.
-- Passwords are read from their files; should a statement fail, it is not logged, since it would show one.
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
