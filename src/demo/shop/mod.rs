//! A small shop that keeps a database busy: inserts, updates, deletes, key changes, large texts
//! that most updates leave alone, and now and then a TRUNCATE, over several connections.
//!
//! Surprise: the workers share their keys on purpose, so they run into deadlocks and duplicate
//! keys. Such a transaction is rolled back and counted; it is what real applications do.

mod mariadb;
mod postgres;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::dice::Dice;
use super::server::session::Session;
use super::{Error, Result};

/// The tables of the shop.
pub const TABLES: [&str; 5] = ["customers", "orders", "items", "manuals", "carts"];

/// What is said to one kind of database; the rest of the SQL is the same for both.
struct Dialect {
    schema: &'static str,
    fill: fn(customers: u64) -> String,
    order: fn(order: u64, customer: u64, cents: u64, note: &str) -> String,
    lines: fn(order: u64, lines: u64) -> String,
    cart: fn(cart: u64, content: &str) -> String,
}

fn dialect(session: &Session) -> &'static Dialect {
    match session {
        Session::Postgres(_) => &postgres::POSTGRES,
        Session::Mariadb(_) => &mariadb::MARIADB,
    }
}

/// How many of each thing the workers did, as far as it was committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Transactions committed.
    pub transactions: u64,
    /// Rows inserted.
    pub inserts: u64,
    /// Rows updated, their keys unchanged.
    pub updates: u64,
    /// Rows deleted.
    pub deletes: u64,
    /// Rows that got another key.
    pub key_changes: u64,
    /// Tables emptied by TRUNCATE.
    pub truncates: u64,
    /// Transactions rolled back, by choice, by a deadlock or by a duplicate key.
    pub rollbacks: u64,
}

impl Counts {
    /// Rows changed by any means but TRUNCATE.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.inserts + self.updates + self.deletes + self.key_changes
    }

    fn add(&mut self, more: &Counts) {
        self.transactions += more.transactions;
        self.inserts += more.inserts;
        self.updates += more.updates;
        self.deletes += more.deletes;
        self.key_changes += more.key_changes;
        self.truncates += more.truncates;
        self.rollbacks += more.rollbacks;
    }
}

/// Makes the shop's tables and fills them with about four rows for each customer.
///
/// # Errors
/// If the database refuses, for instance because the tables exist.
pub async fn open(session: &Session, customers: u64) -> Result<()> {
    let dialect = dialect(session);
    session.batch_execute(dialect.schema).await?;
    session.batch_execute(&(dialect.fill)(customers)).await
}

/// A shop at work; dropping it makes the workers stop, too.
#[derive(Debug)]
pub struct Shop {
    stop: Arc<AtomicBool>,
    transactions: Arc<AtomicU64>,
    workers: Vec<JoinHandle<Counts>>,
}

impl Shop {
    /// Sends this many workers to work, each on a connection of its own. They reconnect when the
    /// server goes away, and pause this long after each transaction.
    #[must_use]
    pub fn start(url: &str, workers: u64, seed: u64, pause: Duration) -> Shop {
        let stop = Arc::new(AtomicBool::new(false));
        let transactions = Arc::new(AtomicU64::new(0));
        let start = |number| {
            let worker = Worker {
                url: url.to_owned(),
                dice: Dice::new(seed.wrapping_mul(1_000_003).wrapping_add(number)),
                // Another seed uses other keys, so that a second shop can follow a first.
                next_key: (seed % 4096 * 64 + number + 1) << 32,
                stop: stop.clone(),
                transactions: transactions.clone(),
                pause,
            };
            tokio::spawn(worker.work())
        };
        let workers = (0..workers).map(start).collect();
        Shop { stop, transactions, workers }
    }

    /// How many transactions have been committed so far.
    #[must_use]
    pub fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }

    /// Tells the workers to finish what they are doing, and counts what was done.
    ///
    /// # Errors
    /// If a worker failed for a reason that is neither the server's absence nor a conflict.
    pub async fn close(mut self) -> Result<Counts> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Counts::default();
        for worker in std::mem::take(&mut self.workers) {
            let counts = worker.await.map_err(|error| Error(format!("a shop worker: {error}")))?;
            all.add(&counts);
        }
        Ok(all)
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Worker {
    url: String,
    dice: Dice,
    next_key: u64,
    stop: Arc<AtomicBool>,
    transactions: Arc<AtomicU64>,
    pause: Duration,
}

impl Worker {
    async fn work(mut self) -> Counts {
        let mut all = Counts::default();
        while !self.stop.load(Ordering::Relaxed) {
            let Ok(session) = Session::connect(&self.url).await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            while !self.stop.load(Ordering::Relaxed) {
                match self.serve(&session).await {
                    Ok(counts) => {
                        self.transactions.fetch_add(counts.transactions, Ordering::Relaxed);
                        all.add(&counts);
                    }
                    Err(_) => {
                        all.rollbacks += 1;
                        if session.batch_execute("ROLLBACK").await.is_err() {
                            break;
                        }
                    }
                }
                tokio::time::sleep(self.pause).await;
            }
        }
        all
    }

    /// One transaction of a few statements.
    async fn serve(&mut self, session: &Session) -> Result<Counts> {
        session.batch_execute("BEGIN").await?;
        let mut counts = Counts { transactions: 1, ..Counts::default() };
        match self.dice.between(0, 100) {
            0..30 => self.order(session, &mut counts).await?,
            30..55 => self.pay(session, &mut counts).await?,
            55..65 => self.move_keys(session, &mut counts).await?,
            65..75 => self.forget(session, &mut counts).await?,
            75..85 => self.revise_manuals(session, &mut counts).await?,
            85..99 => self.fill_cart(session, &mut counts).await?,
            _ => {
                session.batch_execute("TRUNCATE TABLE carts").await?;
                counts.truncates += 1;
            }
        }
        // MariaDB commits a TRUNCATE at once, so that there is nothing to take back.
        if counts.truncates == 0 && self.dice.one_in(25) {
            session.batch_execute("ROLLBACK").await?;
            return Ok(Counts { rollbacks: 1, ..Counts::default() });
        }
        session.batch_execute("COMMIT").await?;
        Ok(counts)
    }

    async fn order(&mut self, session: &Session, counts: &mut Counts) -> Result<()> {
        let dialect = dialect(session);
        let (order, customer) = (self.fresh_key(), self.customer());
        let (cents, note) = (self.dice.between(1, 100_000), self.dice.text(20));
        let insert = (dialect.order)(order, customer, cents, &note);
        counts.inserts += session.execute(&insert).await?;
        let insert = (dialect.lines)(order, self.dice.between(1, 6));
        counts.inserts += session.execute(&insert).await?;
        if self.dice.one_in(10) {
            let name = self.dice.text(12);
            let insert =
                format!("INSERT INTO customers VALUES ({order}, '{name}', NULL, 0, false, now())");
            counts.inserts += session.execute(&insert).await?;
        }
        Ok(())
    }

    async fn pay(&mut self, session: &Session, counts: &mut Counts) -> Result<()> {
        let (payer, payee) = (self.customer(), self.customer());
        let amount = self.dice.between(1, 5_000);
        for (customer, sign) in [(payer, "-"), (payee, "+")] {
            let update = format!(
                "UPDATE customers SET balance = balance {sign} {amount} / 100.0, vip = NOT vip
                 WHERE customer_id = {customer}"
            );
            counts.updates += session.execute(&update).await?;
        }
        let update = format!(
            "UPDATE orders SET status = 'paid', details = NULL WHERE customer_id = {payer}
             AND order_id < {}",
            self.next_key
        );
        counts.updates += session.execute(&update).await?;
        Ok(())
    }

    /// Gives rows other keys, and sometimes the old key to another row at once.
    async fn move_keys(&mut self, session: &Session, counts: &mut Counts) -> Result<()> {
        let (from, to) = (self.customer(), self.fresh_key());
        for table in ["customers", "orders"] {
            let column = if table == "customers" { "customer_id" } else { "order_id" };
            let update = format!("UPDATE {table} SET {column} = {to} WHERE {column} = {from}");
            let moved = session.execute(&update).await?;
            counts.key_changes += moved;
            if moved == 1 && table == "customers" && self.dice.one_in(2) {
                let insert = format!(
                    "INSERT INTO customers (customer_id, name, email, balance, vip)
                     VALUES ({from}, 'newcomer', 'n@example.com', 1, true)"
                );
                counts.inserts += session.execute(&insert).await?;
            }
        }
        if self.dice.one_in(4) {
            let sku = self.manual();
            let update = format!("UPDATE manuals SET sku = '{sku}-{to}' WHERE sku = '{sku}'");
            let moved = session.execute(&update).await?;
            counts.key_changes += moved;
            if moved == 1 {
                self.publish(session, &sku, counts).await?;
            }
        }
        Ok(())
    }

    async fn forget(&mut self, session: &Session, counts: &mut Counts) -> Result<()> {
        let order = if self.dice.one_in(2) {
            self.customer()
        } else {
            self.next_key.saturating_sub(self.dice.between(1, 50))
        };
        for table in ["items", "orders"] {
            let delete = format!("DELETE FROM {table} WHERE order_id = {order}");
            counts.deletes += session.execute(&delete).await?;
        }
        if self.dice.one_in(3) {
            let delete = format!("DELETE FROM customers WHERE customer_id = {}", self.customer());
            counts.deletes += session.execute(&delete).await?;
        }
        Ok(())
    }

    /// Mostly leaves the large text alone, so that the log does not carry it.
    async fn revise_manuals(&mut self, session: &Session, counts: &mut Counts) -> Result<()> {
        let sku = self.manual();
        let body = match self.dice.between(0, 10) {
            0 => format!(", body = repeat('{}', 200)", self.dice.text(32)),
            _ => String::new(),
        };
        let update = format!("UPDATE manuals SET edition = edition + 1{body} WHERE sku = '{sku}'");
        let updated = session.execute(&update).await?;
        counts.updates += updated;
        if updated == 0 {
            self.publish(session, &sku, counts).await?;
        }
        Ok(())
    }

    async fn publish(&mut self, session: &Session, sku: &str, counts: &mut Counts) -> Result<()> {
        let insert = format!(
            "INSERT INTO manuals VALUES ('{sku}', 1, repeat('{}', 150), NULL)",
            self.dice.text(48)
        );
        counts.inserts += session.execute(&insert).await?;
        Ok(())
    }

    async fn fill_cart(&mut self, session: &Session, counts: &mut Counts) -> Result<()> {
        let cart = self.dice.between(1, 500);
        let content = self.dice.text(30);
        let insert = (dialect(session).cart)(cart, &content);
        let inserted = match session {
            Session::Postgres(_) => session.ask(&insert).await?.as_deref() == Some("t"),
            Session::Mariadb(_) => session.execute(&insert).await? == 1,
        };
        match inserted {
            true => counts.inserts += 1,
            false => counts.updates += 1,
        }
        if self.dice.one_in(5) {
            let delete = format!("DELETE FROM carts WHERE cart_id = {cart}");
            counts.deletes += session.execute(&delete).await?;
        }
        Ok(())
    }

    fn fresh_key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }

    fn customer(&mut self) -> u64 {
        self.dice.between(1, 2_000)
    }

    fn manual(&mut self) -> String {
        format!("sku-{}", self.dice.between(1, 60))
    }
}
