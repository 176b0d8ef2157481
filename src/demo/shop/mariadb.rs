//! What the shop says to a MariaDB or a MySQL.

use super::Dialect;

pub(super) const MARIADB: Dialect = Dialect { schema: SCHEMA, fill, order, lines, cart };

/// The index on the customer keeps an update of one customer's orders from locking all of them.
const SCHEMA: &str = "
    CREATE TABLE customers (
        customer_id bigint PRIMARY KEY,
        name varchar(100) NOT NULL,
        email varchar(100),
        balance decimal(12,2) NOT NULL,
        vip boolean NOT NULL DEFAULT false,
        joined_at timestamp(6) NOT NULL DEFAULT current_timestamp(6)
    );
    CREATE TABLE orders (
        order_id bigint PRIMARY KEY,
        customer_id bigint NOT NULL,
        status enum('new', 'paid') NOT NULL,
        total decimal(12,2) NOT NULL,
        details json,
        placed_at datetime(6) NOT NULL DEFAULT current_timestamp(6),
        KEY (customer_id)
    );
    CREATE TABLE items (
        order_id bigint,
        line smallint unsigned,
        sku char(36) CHARACTER SET ascii NOT NULL,
        quantity mediumint NOT NULL,
        weight double,
        PRIMARY KEY (order_id, line)
    );
    CREATE TABLE manuals (
        sku varchar(100) PRIMARY KEY,
        edition int NOT NULL,
        body mediumtext NOT NULL,
        cover blob
    );
    CREATE TABLE carts (
        cart_id bigint unsigned PRIMARY KEY,
        content text,
        touched_on date NOT NULL DEFAULT (current_date)
    );";

fn fill(customers: u64) -> String {
    let manuals = (customers / 100).max(20);
    let (numbers, fewer) = (series(customers), series(manuals));
    format!(
        "INSERT INTO customers SELECT n, concat('customer ', n),
             nullif(concat('c', n, '@example.com'), 'c7@example.com'), n % 1000 / 4.0, n % 50 = 0,
             now(6) FROM {numbers};
         INSERT INTO orders SELECT n, n, 'paid', n % 700 / 2.0,
             json_object('gift', n % 9 = 0, 'note', sha2(n, 224)), now(6) FROM {numbers};
         INSERT INTO items SELECT n, line, left(sha2(n, 224), 36), 1 + n % 5, n / 7.0
             FROM {numbers}, (SELECT 1 line UNION SELECT 2) two_lines;
         INSERT INTO manuals SELECT concat('sku-', n), 1, repeat(sha2(n, 224), 170), unhex(sha2(n, 224))
             FROM {fewer}"
    )
}

fn order(order: u64, customer: u64, cents: u64, note: &str) -> String {
    format!(
        "INSERT INTO orders VALUES ({order}, {customer}, 'new', {cents} / 100.0,
         json_object('note', '{note}'), now(6))"
    )
}

fn lines(order: u64, lines: u64) -> String {
    let line = |line| format!("({order}, {line}, uuid(), 1 + {line}, rand())");
    format!("INSERT INTO items VALUES {}", (1..=lines).map(line).collect::<Vec<_>>().join(", "))
}

/// Changes one row if it inserts, two (the old and the new one, in MariaDB's way of counting) if
/// it updates.
fn cart(cart: u64, content: &str) -> String {
    format!(
        "INSERT INTO carts (cart_id, content) VALUES ({cart}, '{content}')
         ON DUPLICATE KEY UPDATE content = left(concat(VALUES(content), content), 20000)"
    )
}

/// The numbers from 1, as a table in FROM.
fn series(last: u64) -> String {
    format!(
        "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {last})
          SELECT n FROM s) series"
    )
}
