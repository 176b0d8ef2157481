//! What the shop says to a PostgreSQL.

use super::Dialect;

pub(super) const POSTGRES: Dialect = Dialect { schema: SCHEMA, fill, order, lines, cart };

const SCHEMA: &str = "
    CREATE TABLE customers (
        customer_id bigint PRIMARY KEY,
        name text NOT NULL,
        email text,
        balance numeric(12,2) NOT NULL,
        vip boolean NOT NULL DEFAULT false,
        joined_at timestamptz NOT NULL DEFAULT clock_timestamp()
    );
    CREATE TABLE orders (
        order_id bigint PRIMARY KEY,
        customer_id bigint NOT NULL,
        status text NOT NULL,
        total numeric(12,2) NOT NULL,
        details jsonb,
        placed_at timestamp NOT NULL DEFAULT clock_timestamp()
    );
    CREATE TABLE items (
        order_id bigint,
        line smallint,
        sku uuid NOT NULL,
        quantity integer NOT NULL,
        weight double precision,
        PRIMARY KEY (order_id, line)
    );
    CREATE TABLE manuals (
        sku text PRIMARY KEY,
        edition integer NOT NULL,
        body text NOT NULL,
        cover bytea
    );
    ALTER TABLE manuals ALTER body SET STORAGE EXTERNAL;
    CREATE TABLE carts (
        cart_id bigint PRIMARY KEY,
        content text,
        touched_on date NOT NULL DEFAULT current_date
    );";

fn fill(customers: u64) -> String {
    format!(
        "INSERT INTO customers SELECT n, 'customer ' || n,
             nullif('c' || n || '@example.com', 'c7@example.com'), n % 1000 / 4.0, n % 50 = 0, now()
             FROM generate_series(1, {customers}) n;
         INSERT INTO orders SELECT n, n, 'paid', n % 700 / 2.0,
             jsonb_build_object('gift', n % 9 = 0, 'note', md5(n::text)), now()
             FROM generate_series(1, {customers}) n;
         INSERT INTO items SELECT n, line, md5(n::text)::uuid, 1 + n % 5, n / 7.0
             FROM generate_series(1, {customers}) n, generate_series(1, 2) line;
         INSERT INTO manuals SELECT 'sku-' || n, 1, repeat(md5(n::text), 300),
             decode(md5(n::text), 'hex') FROM generate_series(1, greatest(20, {customers} / 100)) n;
         ANALYZE customers, orders, items, manuals"
    )
}

fn order(order: u64, customer: u64, cents: u64, note: &str) -> String {
    format!(
        "INSERT INTO orders VALUES ({order}, {customer}, 'new', {cents} / 100.0,
         jsonb_build_object('note', '{note}'), clock_timestamp())"
    )
}

fn lines(order: u64, lines: u64) -> String {
    format!(
        "INSERT INTO items SELECT {order}, line, gen_random_uuid(), 1 + line, random()
         FROM generate_series(1, {lines}) line"
    )
}

/// Answers whether the row was inserted: it was, if no transaction has locked it before.
fn cart(cart: u64, content: &str) -> String {
    format!(
        "INSERT INTO carts VALUES ({cart}, '{content}')
         ON CONFLICT (cart_id) DO UPDATE SET content = excluded.content || carts.content
         RETURNING xmax = 0"
    )
}
