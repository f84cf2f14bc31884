-- The database of the pairs. `tests/unit/test_sql_pairs.py` builds it.
CREATE TABLE emp (id INTEGER PRIMARY KEY, name TEXT, dept TEXT, salary REAL, hired TEXT, boss INTEGER);
INSERT INTO emp VALUES
  (1, 'Ann', 'Sales', 100.0, '2020-01-05', NULL),
  (2, 'bob', 'Sales', 200.0, '2021-02-06', 1),
  (3, 'Bob', 'Ops', 200.0, '2021-03-07', 1),
  (4, 'Cid', 'Ops', 300.0, '2022-04-08', 2),
  (5, 'Dee', 'Ops', NULL, '2022-05-09', 2),
  (6, 'Ann', 'HR', 150.0, '2023-06-10', NULL);
CREATE TABLE nums (id INTEGER PRIMARY KEY, i INTEGER, r REAL, s TEXT);
INSERT INTO nums VALUES (1, 1, 1.0, '1'), (2, 2, 2.5, '2.5'), (3, NULL, NULL, NULL), (4, 9007199254740993, 9007199254740992.0, 'big'),
  (5, 0, -0.0, ''), (6, -7, 1e300, '007');
CREATE TABLE odd (id INTEGER PRIMARY KEY, t TEXT, b BLOB);
INSERT INTO odd VALUES (1, CAST(X'636166E9' AS TEXT), X'00FF'), (2, 'café', X''), (3, 'caf', X'636166'), (4, '', NULL), (5, NULL, X'00FF');
CREATE TABLE nobody (a INTEGER, b TEXT, c REAL);
CREATE TABLE caseless (n TEXT COLLATE NOCASE, v INTEGER);
INSERT INTO caseless VALUES ('x', 1), ('X', 2), ('y', 3);
CREATE TABLE "select" ("order" TEXT, "group" INTEGER, [odd name] TEXT);
INSERT INTO "select" VALUES ('DELETE', 1, 'a;b'), ('DROP', 2, '-- no comment'), ('update', 3, '/* nor this */');
CREATE TABLE big (n INTEGER PRIMARY KEY, v INTEGER);
WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 5000) INSERT INTO big SELECT x, x % 100 FROM c;
CREATE TABLE grid (r INTEGER, x INTEGER, y INTEGER);
INSERT INTO grid VALUES (1, 1, 2), (2, 2, 1);
CREATE TABLE events (at TEXT, what TEXT);
INSERT INTO events VALUES ('now', 'a'), ('2024-02-29', 'b'), ('2024-12-31 23:59:59', 'c');
CREATE VIEW emp_years AS SELECT name, CAST(strftime('%Y', hired) AS INTEGER) AS year FROM emp;
CREATE INDEX emp_month ON emp (strftime('%m', hired));
CREATE TABLE generated (d TEXT, y TEXT GENERATED ALWAYS AS (strftime('%Y', d)) VIRTUAL);
INSERT INTO generated (d) VALUES ('1999-12-31'), ('2000-01-01');
CREATE VIRTUAL TABLE docs USING fts5 (body);
INSERT INTO docs VALUES ('the quick fox'), ('the lazy dog');
CREATE TABLE json_docs (id INTEGER PRIMARY KEY, doc TEXT);
INSERT INTO json_docs VALUES (1, '{"tags": ["a", "b"]}'), (2, '{"tags": []}'), (3, 'not json');
-- People, cells and odd names.
CREATE TABLE staff (id INTEGER PRIMARY KEY, name TEXT, dept TEXT, pay REAL, age INT, hired TEXT, boss INT);
INSERT INTO staff VALUES
  (1, 'Ann', 'A', 100.0, 30, '2020-01-05', NULL), (2, 'Bob', 'A', 200.5, 40, '2019-03-01', 1), (3, 'Cid', 'B', 200.5, 25, '2021-07-09', 1),
  (4, 'Dee', 'B', 50.0, 30, '2018-12-31', 2), (5, 'Eve', NULL, NULL, NULL, NULL, 2), (6, 'ann', 'C', 100.0, 40, '2020-01-05', 3);
CREATE TABLE cells (k INTEGER, v);
INSERT INTO cells VALUES (1, 1), (2, 1.0), (3, '1'), (4, X'31'), (5, NULL), (6, ''), (7, 'é'), (8, 'e' || char(769)), (9, 9007199254740993),
  (10, 9e999), (11, -0.0), (12, 1e-10), (13, '1.0'), (14, '2024-01-02');
CREATE TABLE wide (a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x, y, z);
INSERT INTO wide VALUES (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2),
  (2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1);
CREATE TABLE empty1 (x INT);
CREATE TABLE ci (w TEXT COLLATE NOCASE);
INSERT INTO ci VALUES ('a'), ('A'), ('b');
CREATE TABLE "order" ("group" INT, "select x" TEXT);
INSERT INTO "order" VALUES (1, 'p'), (2, 'q');
-- Ties, duplicates, odd defaults, views that do what they should not.
CREATE TABLE branch (id INTEGER PRIMARY KEY, name TEXT, city TEXT COLLATE NOCASE);
INSERT INTO branch VALUES (1, 'Sales', 'Bern'), (2, 'R&D', 'bern'), (3, 'Ops', 'Ulm'), (4, 'Legal', NULL);
CREATE TABLE worker (id INTEGER PRIMARY KEY, name TEXT, dept_id INT, salary REAL, hired TEXT, note);
INSERT INTO worker VALUES (1, 'Ann', 1, 3000, '2020-01-05', 'x'), (2, 'Bob', 1, 3000, '2019-03-01', NULL), (3, 'Cid', 2, 4000, '2021-12-31', ''),
  (4, 'Dan', 2, 2000, '2018-07-07', 0), (5, 'Eve', 3, 4000, '2022-02-02', '0'), (6, 'bob', 3, 1000, '2024-12-31', 'NULL'), (7, 'Bob ', NULL, NULL, NULL, 1.5);
CREATE TABLE twice (a, b);
INSERT INTO twice VALUES (1, 1), (1, 1), (1, 2), (2, 1), (2, 1), (2, 1);
CREATE TABLE hollow (a INT, b TEXT);
CREATE TABLE log (id INTEGER PRIMARY KEY, action TEXT, "update" TEXT, "order" INT);
INSERT INTO log VALUES (1, 'DELETE', 'now', 3), (2, 'a;b', '-- no', 1), (3, 'DROP TABLE x;', '/* c */', 2);
CREATE TABLE upto (n INTEGER PRIMARY KEY);
WITH RECURSIVE r (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 3000) INSERT INTO upto SELECT i FROM r;
CREATE TABLE broad (a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x, y, z);
INSERT INTO broad VALUES
  (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120, 130, 140, 150, 160, 170, 180, 190, 200, 210, 220, 230, 240, 250),
  (1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 101, 111, 121, 131, 141, 151, 161, 171, 181, 191, 201, 211, 221, 231, 241, 251),
  (2, 12, 22, 32, 42, 52, 62, 72, 82, 92, 102, 112, 122, 132, 142, 152, 162, 172, 182, 192, 202, 212, 222, 232, 242, 252);
CREATE VIEW ordered_view AS SELECT a FROM (SELECT 1 a UNION SELECT 2 UNION SELECT 3) ORDER BY a;
CREATE VIEW loads AS SELECT load_extension('x');
CREATE VIEW bomb AS WITH RECURSIVE r (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r) SELECT count(*) c FROM r;
