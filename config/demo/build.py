"""Build the demo's databases, and put their schemas into the demo's rows.

    python config/demo/build.py [FOLDER]

writes `shop.sqlite` and `cinema.sqlite` into FOLDER (by default `databases/` beside this file) and brings the field
`schema` of `rows.jsonl` up to date. Every name in them is made up. The same code gives the same rows on any machine: of
the random generator only `random()` is used, which Python promises to keep.
"""

from __future__ import annotations

import datetime
import json
import random
import sqlite3
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

HERE = Path(__file__).resolve().parent
T = TypeVar("T")

SHOP_TABLES = """
CREATE TABLE categories (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  parent_id INTEGER REFERENCES categories(id)
);
CREATE TABLE products (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  category_id INTEGER NOT NULL REFERENCES categories(id),
  price REAL NOT NULL,
  stock INTEGER NOT NULL,
  discontinued_on DATE
);
CREATE TABLE customers (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  email TEXT,
  city TEXT NOT NULL,
  country TEXT NOT NULL,
  joined_on DATE NOT NULL
);
CREATE TABLE orders (
  id INTEGER PRIMARY KEY,
  customer_id INTEGER NOT NULL REFERENCES customers(id),
  ordered_on DATE NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('new', 'shipped', 'delivered', 'returned', 'cancelled')),
  shipped_on DATE
);
CREATE TABLE order_items (
  order_id INTEGER NOT NULL REFERENCES orders(id),
  product_id INTEGER NOT NULL REFERENCES products(id),
  quantity INTEGER NOT NULL,
  unit_price REAL NOT NULL,
  PRIMARY KEY (order_id, product_id)
);
CREATE TABLE payments (
  id INTEGER PRIMARY KEY,
  order_id INTEGER NOT NULL REFERENCES orders(id),
  method TEXT NOT NULL,
  amount REAL NOT NULL,
  paid_on DATE
);
CREATE TABLE reviews (
  id INTEGER PRIMARY KEY,
  product_id INTEGER NOT NULL REFERENCES products(id),
  customer_id INTEGER NOT NULL REFERENCES customers(id),
  rating INTEGER NOT NULL CHECK (rating BETWEEN 1 AND 5),
  comment TEXT,
  written_on DATE NOT NULL
)
"""

CINEMA_TABLES = """
CREATE TABLE directors (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  country TEXT,
  born_on DATE
);
CREATE TABLE movies (
  id INTEGER PRIMARY KEY,
  title TEXT NOT NULL,
  director_id INTEGER NOT NULL REFERENCES directors(id),
  language TEXT NOT NULL,
  released_on DATE NOT NULL,
  runtime_min INTEGER NOT NULL
);
CREATE TABLE genres (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE
);
CREATE TABLE movie_genres (
  movie_id INTEGER NOT NULL REFERENCES movies(id),
  genre_id INTEGER NOT NULL REFERENCES genres(id),
  PRIMARY KEY (movie_id, genre_id)
);
CREATE TABLE halls (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  seats INTEGER NOT NULL,
  opened_on DATE
);
CREATE TABLE screenings (
  id INTEGER PRIMARY KEY,
  movie_id INTEGER NOT NULL REFERENCES movies(id),
  hall_id INTEGER NOT NULL REFERENCES halls(id),
  starts_at TEXT NOT NULL,
  subtitles TEXT
);
CREATE TABLE tickets (
  id INTEGER PRIMARY KEY,
  screening_id INTEGER NOT NULL REFERENCES screenings(id),
  seat INTEGER NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('full', 'child', 'student', 'senior')),
  price REAL NOT NULL,
  member_card TEXT,
  UNIQUE (screening_id, seat)
)
"""

CATEGORIES = [
    (1, "Kitchen", None),
    (2, "Garden", None),
    (3, "Office", None),
    (4, "Toys", None),
    (5, "Coffee", 1),
    (6, "Knives", 1),
    (7, "Seeds", 2),
    (8, "Paper", 3),
    (9, "Puzzles", 4),
    (10, "Gift cards", None),
]
PRODUCTS = [
    ("Moka pot", 5, 24.9), ("Espresso cup", 5, 6.5), ("Café filter", 5, 3.2), ("Hand grinder", 5, 39.0),
    ("Milk jug", 5, 14.0), ("Chef's knife", 6, 59.0), ("Bread knife", 6, 34.5), ("Paring knife", 6, 12.0),
    ("Whetstone", 6, 27.0), ("Cutting board", 1, 22.0), ("Mixing bowl", 1, 17.5), ("铁锅 Wok", 1, 45.0),
    ("Teapot 茶壶", 1, 31.0), ("Crêpe pan", 1, 28.0), ("Watering can", 2, 19.0), ("Garden gloves", 2, 8.9),
    ("Pruning shears", 2, 23.5), ("Jalapeño seeds", 7, 2.9), ("Sunflower seeds", 7, 2.5), ("Basil seeds", 7, 2.2),
    ("Tomato seeds", 7, 2.7), ("Desk lamp", 3, 42.0), ("Fountain pen", 3, 35.0), ("Ink, blue-black", 3, 9.8),
    ("Desk mat", 3, 18.0), ("Notebook A5", 8, 7.4), ("Washi paper 和紙", 8, 11.0), ("Envelopes, 50", 8, 5.6),
    ("Sticky notes", 8, 3.9), ("Wooden train", 4, 29.0), ("Kite", 4, 16.0), ("Yo-yo", 4, 4.5),
    ("Puzzle 500 pieces", 9, 13.0), ("Puzzle 1000 pieces", 9, 18.5), ("Puzzle 2000 pieces", 9, 27.5),
    ("Cube puzzle", 9, 9.5),
]  # fmt: skip
DISCONTINUED = {8: "2024-03-31", 19: "2024-06-30", 28: "2023-12-31", 32: "2024-09-15"}
CUSTOMERS = [
    ("Zoë Müller", "Berlin", "Germany"), ("Jürgen Weiß", "Köln", "Germany"), ("Anna Schmidt", "Berlin", "Germany"),
    ("Max Bauer", "München", "Germany"), ("José García", "Málaga", "Spain"), ("Lucía Fernández", "Madrid", "Spain"),
    ("Iñaki Etxeberria", "Bilbao", "Spain"), ("王芳", "上海", "China"), ("李伟", "北京", "China"),
    ("张敏", "上海", "China"), ("陈静", "成都", "China"), ("刘洋", "北京", "China"),
    ("François Lefèvre", "Lyon", "France"),
    ("Chloé Dubois", "Paris", "France"), ("Éloïse Martin", "Paris", "France"), ("Łukasz Nowak", "Kraków", "Poland"),
    ("Agnieszka Wójcik", "Łódź", "Poland"), ("Søren Ågård", "Aarhus", "Denmark"),
    ("Siobhán O'Brien", "Dublin", "Ireland"), ("Liam O'Connor", "Cork", "Ireland"),
    ("Ngô Thị Hoa", "Hà Nội", "Vietnam"), ("佐藤 健", "東京", "Japan"),
    ("鈴木 花子", "大阪", "Japan"), ("Olga Petrova", "Riga", "Latvia"), ("Giulia Rossi", "Torino", "Italy"),
    ("Marco Bianchi", "Torino", "Italy"), ("Emma Jansen", "Utrecht", "Netherlands"),
    ("Noah de Vries", "Utrecht", "Netherlands"),
    ("Ana Silva", "Porto", "Portugal"), ("João Costa", "Porto", "Portugal"), ("Mia Virtanen", "Tampere", "Finland"),
    ("Hugo Lindström", "Malmö", "Sweden"), ("Ali Yılmaz", "İzmir", "Türkiye"), ("Priya Nair", "Kochi", "India"),
    ("Tom Baker", "Leeds", "United Kingdom"), ("Grace Hughes", "Leeds", "United Kingdom"),
]  # fmt: skip
COMMENTS = {
    "good": ["Great, would buy again 👍", "很好用！", "Très joli", "Schön verarbeitet", "Perfect gift 🎁", None, None],
    "fair": ["It's fine", "Smaller than it looks", "质量一般，价格偏高", None],
    "bad": ["Arrived late.", "Broken on arrival 😡", "Geht so …", None],
}  # fmt: skip
PAYMENT_METHODS = ["card", "card", "card", "transfer", "paypal", "invoice"]

GENRES = ["Drama", "Comedy", "Science Fiction", "Documentary", "Animation", "Crime", "Romance", "Silent"]
DIRECTORS = [
    ("Ada Lindqvist", "Sweden", "1971-04-02"), ("Marcel Béranger", "France", "1958-11-19"),
    ("Rosa Calderón", "Mexico", "1980-07-30"), ("林小川", "China", "1975-01-12"),
    ("Kenji Morita", "Japan", "1949-09-05"),
    ("Tomasz Zieliński", "Poland", "1966-02-28"), ("Ines Okafor", "Nigeria", "1985-12-08"), ("Unknown", None, None),
    ("Petra Novotná", "Czechia", "1990-05-17"), ("Daniel Whitlock", "United Kingdom", "1962-08-23"),
]  # fmt: skip
MOVIES = [
    ("The Copper Moon", 10, "English", "2019-03-08", 118, (1, 6)),
    ("L'été à l'envers", 2, "French", "2004-06-16", 97, (2, 7)),
    ("Rain on Platform 4", 10, "English", "2021-10-01", 104, (1, 7)),
    ("长河", 4, "Chinese", "2016-09-30", 142, (1,)),
    ("茶馆的猫", 4, "Chinese", "2022-02-01", 95, (2, 5)),
    ("El faro dormido", 3, "Spanish", "2018-11-23", 109, (1, 6)),
    ("Siete cartas", 3, "Spanish", "2023-04-14", 88, (7,)),
    ("Orbit Nine", 1, "English", "2020-07-17", 131, (3,)),
    ("Orbit Ten", 1, "English", "2023-07-21", 137, (3,)),
    ("Snow Atlas", 1, "Swedish", "2012-01-27", 92, (4,)),
    ("月の庭", 5, "Japanese", "1989-05-03", 126, (1, 7)),
    ("Paper Foxes", 5, "Japanese", "2001-07-20", 84, (5,)),
    ("Żółty tramwaj", 6, "Polish", "1998-10-09", 101, (2,)),
    ("Cicha stacja", 6, "Polish", "2007-03-16", 113, (1, 6)),
    ("Harmattan", 7, "English", "2019-08-30", 99, (1,)),
    ("Lagos at Noon", 7, "English", "2022-09-09", 76, (4,)),
    ("The Clockmaker's Hat", 8, "None", "1923-02-11", 58, (8, 2)),
    ("Hráč", 9, "Czech", "2021-04-22", 107, (6,)),
    ("Noc a jablka", 9, "Czech", "2024-01-18", 93, (2, 7)),
    ("Le dernier ferry", 2, "French", "2011-12-07", 121, (1,)),
    ("Glass Harbour", 10, "English", "2008-05-09", 110, (6,)),
    ("Machines of Small Grace", 1, "English", "2024-02-02", 149, (3, 1)),
]
HALLS = [
    ("Grand", 220, "1931-10-01"), ("Blue", 96, "1978-03-15"), ("Studio", 48, "2005-09-01"), ("Attic 🎬", 24, None),
]  # fmt: skip
TICKET_PRICES = {"full": 11.0, "child": 6.5, "student": 8.0, "senior": 8.5}
TICKET_KINDS = ["full", "full", "full", "student", "student", "senior", "child"]


class Dice:
    """Chance that falls the same way on every machine and in every version of Python."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def below(self, limit: int) -> int:
        """Return a number from 0 up to, without, a limit."""
        return int(self._random() * limit)

    def pick(self, items: Sequence[T]) -> T:
        """Return one of some items."""
        return items[self.below(len(items))]

    def hits(self, chance: float) -> bool:
        """Return whether something of this chance happens."""
        return self._random() < chance

    def take(self, items: Iterable[T], count: int) -> list[T]:
        """Return some of the items, none twice."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(count)]


def _day(start: str, days: int) -> str:
    return (datetime.date.fromisoformat(start) + datetime.timedelta(days=days)).isoformat()


def build_shop(folder: Path) -> None:
    """Build `shop.sqlite`: a web shop with orders, payments and reviews of two years."""
    dice = Dice(20240501)
    products = [
        (number, name, category, price, 0 if dice.hits(0.12) else 1 + dice.below(180), DISCONTINUED.get(number))
        for number, (name, category, price) in enumerate(PRODUCTS, start=1)
    ]
    customers = [
        (
            number,
            name,
            None if dice.hits(0.2) else f"customer{number}@example.org",
            city,
            country,
            _day("2022-01-05", dice.below(800)),
        )
        for number, (name, city, country) in enumerate(CUSTOMERS, start=1)
    ]
    orders, items, payments = _make_orders(dice, customers)
    reviews = _make_reviews(dice, orders, items)
    tables = {
        "categories": CATEGORIES,
        "products": products,
        "customers": customers,
        "orders": orders,
        "order_items": items,
        "payments": payments,
        "reviews": reviews,
    }
    write_database(folder / "shop.sqlite", SHOP_TABLES, tables)


def _make_orders(dice: Dice, customers: Sequence[tuple[Any, ...]]) -> tuple[list[Any], list[Any], list[Any]]:
    """Make orders with their items and payments; the last three customers never order."""
    orders: list[Any] = []
    items: list[Any] = []
    payments: list[Any] = []
    for number in range(1, 181):
        # The smaller of two draws: some customers order much more often than others.
        customer = customers[min(dice.below(33), dice.below(33))]
        ordered = max(_day("2023-01-02", dice.below(720)), customer[5])
        status = dice.pick(["delivered"] * 6 + ["shipped", "shipped", "new", "returned", "cancelled"])
        shipped = _day(ordered, 1 + dice.below(9)) if status in ("shipped", "delivered", "returned") else None
        orders.append((number, customer[0], ordered, status, shipped))
        total = 0.0
        for product in sorted(dice.take(range(1, 35), 1 + dice.below(4))):
            quantity, price = 1 + dice.below(3), PRODUCTS[product - 1][2]
            unit_price = round(price * 0.9, 2) if dice.hits(0.2) else price
            items.append((number, product, quantity, unit_price))
            total += quantity * unit_price
        if status != "cancelled":
            paid = None if status == "new" and dice.hits(0.7) else _day(ordered, dice.below(14))
            payments.append((len(payments) + 1, number, dice.pick(PAYMENT_METHODS), round(total, 2), paid))
    return orders, items, payments


def _make_reviews(dice: Dice, orders: Sequence[Any], items: Sequence[Any]) -> list[Any]:
    """Make reviews of delivered products, each by a customer who bought it."""
    buyers = {order[0]: (order[1], order[4]) for order in orders if order[3] == "delivered"}
    reviews: list[Any] = []
    for order, product, *_ in items:
        if order in buyers and dice.hits(0.4):
            customer, shipped = buyers[order]
            rating = dice.pick([5, 5, 5, 4, 4, 4, 3, 2, 1])
            comment = dice.pick(COMMENTS["good" if rating > 3 else "fair" if rating > 2 else "bad"])
            reviews.append((len(reviews) + 1, product, customer, rating, comment, _day(shipped, 2 + dice.below(30))))
    return reviews


def build_cinema(folder: Path) -> None:
    """Build `cinema.sqlite`: a cinema with four halls, its screenings in spring 2024 and the tickets sold."""
    dice = Dice(19311001)
    movies = [(number, *movie[:5]) for number, movie in enumerate(MOVIES, start=1)]
    movie_genres = [(number, genre) for number, movie in enumerate(MOVIES, start=1) for genre in movie[5]]
    screenings: list[Any] = []
    tickets: list[Any] = []
    for number in range(1, 121):
        # The last two movies are never shown.
        movie = 1 + min(dice.below(20), dice.below(20))
        hall = 1 + dice.below(len(HALLS))
        hour = dice.pick(["14:30", "17:00", "19:45", "20:15", "22:30"])
        language = MOVIES[movie - 1][2]
        subtitles = dice.pick(["English", None]) if language not in ("English", "None") else None
        screenings.append((number, movie, hall, f"{_day('2024-03-01', number * 3 // 4)} {hour}", subtitles))
        sold = 0 if dice.hits(0.08) else 1 + dice.below(min(HALLS[hall - 1][1], 16))
        for seat in sorted(dice.take(range(1, HALLS[hall - 1][1] + 1), sold)):
            kind = dice.pick(TICKET_KINDS)
            card = f"M{100 + dice.below(40)}" if dice.hits(0.3) else None
            price = TICKET_PRICES[kind] - (1.5 if card else 0)
            tickets.append((len(tickets) + 1, number, seat, kind, price, card))
    tables = {
        "directors": [(number, *row) for number, row in enumerate(DIRECTORS, start=1)],
        "movies": movies,
        "genres": list(enumerate(GENRES, start=1)),
        "movie_genres": movie_genres,
        "halls": [(number, *row) for number, row in enumerate(HALLS, start=1)],
        "screenings": screenings,
        "tickets": tickets,
    }
    write_database(folder / "cinema.sqlite", CINEMA_TABLES, tables)


def write_database(path: Path, ddl: str, tables: dict[str, Sequence[Sequence[Any]]]) -> None:
    """Write one database file, new, small and checked."""
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA page_size = 1024")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.executescript(ddl)
        for table, rows in tables.items():
            marks = ", ".join("?" * len(rows[0]))
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        connection.commit()
        connection.execute("VACUUM")
    finally:
        connection.close()


def read_schema(path: Path) -> str:
    """Return the statements that made the tables of a database, as the prompt shows them."""
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        found = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table' ORDER BY rowid").fetchall()
    finally:
        connection.close()
    return ";\n".join(sql for (sql,) in found) + ";"


def update_rows(path: Path, folder: Path) -> None:
    """Put the schema of each row's database into its field `schema`."""
    schemas = {file.stem: read_schema(file) for file in folder.glob("*.sqlite")}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps(row | {"schema": schemas[row["db_id"]]}, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def main(words: Sequence[str]) -> None:
    """Build everything."""
    folder = Path(words[0]) if words else HERE / "databases"
    folder.mkdir(parents=True, exist_ok=True)
    build_shop(folder)
    build_cinema(folder)
    if not words:
        update_rows(HERE / "rows.jsonl", folder)


if __name__ == "__main__":
    main(sys.argv[1:])
