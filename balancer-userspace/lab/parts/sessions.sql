-- For connect-pg-simple.
CREATE TABLE session (
  sid    varchar      PRIMARY KEY,
  sess   json         NOT NULL,
  expire timestamp(6) NOT NULL
);
CREATE INDEX session_expire ON session (expire);

-- For Tomcat's DataSourceStore.
CREATE TABLE tomcat_sessions (
  session_id   varchar(100) PRIMARY KEY,
  app_name     varchar(255),
  session_data bytea,
  valid_session char(1)     NOT NULL,
  max_inactive integer      NOT NULL,
  last_access  bigint       NOT NULL
);
CREATE INDEX tomcat_sessions_app ON tomcat_sessions (app_name);
