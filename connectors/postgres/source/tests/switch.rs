//! The change between bulk reads and streaming, as a simulation against a real server: writers
//! that never wait for us, and from a seed a reader that is dropped in the middle of everything,
//! killed at any point, and resumed from any position that was durable by then. What it gives out
//! is compared with a stream that only ever reads from the beginning to the end.
//!
//! Surprise: only the reader follows the seed; the server and its writers have a clock of their
//! own. So a seed that fails may have to be tried more than once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::super::lsn::Bookmark;
use super::*;

const SEEDS: u64 = 6;
const STEPS: u32 = 1200;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn choose<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[usize::try_from(self.below(items.len() as u64)).unwrap()]
    }
}

/// One change as it must come, whichever way and how often.
type Said = (Version, String);

/// A pipeline whose target remembers everything.
struct Reader<'a> {
    fixture: &'a Fixture,
    dice: Dice,
    stream: Option<Box<dyn ChangeStream>>,
    /// What was given out, up to the last complete transaction.
    said: Vec<Said>,
    /// Parts of the one that is not complete.
    open: Vec<Said>,
    /// Positions that were reached, with how much had been said there.
    reached: Vec<(Position, usize)>,
    /// The place in `reached` that was acknowledged, or was durable at the last start.
    acknowledged: usize,
    seen_in_bulk: u32,
    seen_streaming: u32,
}

impl Reader<'_> {
    async fn step(&mut self) {
        let Some(stream) = &mut self.stream else { return self.resume().await };
        match self.dice.below(100) {
            0 => {
                if self.dice.one_in(2) {
                    stream.close(&self.reached[self.acknowledged].0).await.unwrap();
                }
                self.stream = None;
            }
            1..=10 => {
                // Anything that was reached since, not only the newest.
                let choices = (self.reached.len() - self.acknowledged) as u64;
                self.acknowledged += usize::try_from(self.dice.below(choices)).unwrap();
                stream.acknowledge(&self.reached[self.acknowledged].0).await.unwrap();
            }
            11..=13 => {
                match self.fixture.is_in_bulk().await {
                    true => self.seen_in_bulk += 1,
                    false => self.seen_streaming += 1,
                }
                let confirmed = self.fixture.confirmed().await;
                let durable = Bookmark::read(&self.reached[self.acknowledged].0).unwrap().lsn;
                assert!(confirmed <= durable, "{confirmed} is not durable, {durable} is");
            }
            14 => tokio::time::sleep(Duration::from_millis(self.dice.below(60))).await,
            roll => {
                let patience = match roll {
                    ..50 => Duration::from_micros(self.dice.below(300)),
                    _ => Duration::from_millis(50),
                };
                // Dropped in the middle of whatever it is at.
                let next = tokio::time::timeout(patience, stream.next()).await;
                if let Ok(transaction) = next {
                    self.receive(transaction.unwrap());
                }
            }
        }
    }

    fn receive(&mut self, transaction: Transaction) {
        let Transaction { position, complete, .. } = transaction.clone();
        let changes = transaction.versioned();
        self.open.extend(changes.map(|(version, change)| (version, words(&change))));
        if complete {
            self.said.append(&mut self.open);
            self.reached.push((position, self.said.len()));
        }
    }

    /// The process was killed. The target remembers everything up to some position that it had
    /// reached, at least to the one that was acknowledged.
    async fn resume(&mut self) {
        let choices = (self.reached.len() - self.acknowledged) as u64;
        let durable = self.acknowledged + usize::try_from(self.dice.below(choices)).unwrap();
        self.reached.truncate(durable + 1);
        self.acknowledged = durable;
        let (position, said) = self.reached[durable].clone();
        self.said.truncate(said);
        self.open.clear();
        let Reader { fixture, dice, .. } = self;
        let above = *dice.choose(&[None, Some(1 << 10), Some(8 << 10), Some(64 << 10)]);
        let mut options = SourceOptions::new(&fixture.slot()[10..], 8 << 10);
        options.in_binary = dice.one_in(2);
        let mut source = source(&fixture.database.url(), &options).unwrap();
        source.bulk_read_above = above;
        let tables = fixture.tables().await;
        source.subscribe(&tables, Some(Resume::at(&position))).await.unwrap();
        self.stream = Some(source.stream(&position, EPOCH, &tables, &[]).await.unwrap());
    }
}

/// Writes until told to stop: small transactions, now and then a large one or one that fails.
async fn write(database: Arc<str>, writer: u64, seed: u64, stop: Arc<AtomicBool>) {
    let config = super::super::super::config::Config::parse(&database).unwrap();
    let client = super::super::super::connect::connect(&config, "writer").await.unwrap();
    let mut dice = Dice(seed * 31 + writer);
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        let rows = if dice.one_in(40) { dice.below(3000) } else { 1 + dice.below(5) };
        let end = match dice.one_in(10) {
            true => "ROLLBACK",
            false => "COMMIT",
        };
        let (first, last) = (next + 1, next + rows);
        next = last;
        let sql = format!(
            "BEGIN; INSERT INTO public.t SELECT {writer}, k, repeat('x', k % 300) \
             FROM generate_series({first}, {last}) k; \
             UPDATE public.t SET v = 'u' WHERE w = {writer} AND k = {first}; \
             DELETE FROM public.t WHERE w = {writer} AND k = {last}; {end}"
        );
        client.batch_execute(&sql).await.unwrap();
        if dice.one_in(4) {
            tokio::time::sleep(Duration::from_millis(dice.below(30))).await;
        }
    }
}

/// Everything after a position, streamed at one go.
async fn all_said(fixture: &Fixture, source: &PostgresSource, from: &Position) -> Vec<Said> {
    let tables = fixture.tables().await;
    let mut stream = source.stream(from, EPOCH, &tables, &[]).await.unwrap();
    let transactions = fixture.read_all(&mut stream).await;
    let changes = transactions.into_iter().flat_map(Transaction::versioned);
    changes.map(|(version, change)| (version, words(&change))).collect()
}

async fn simulate(seed: u64) -> (u32, u32) {
    let fixture = Fixture::new("CREATE TABLE t (w int, k int, v text, PRIMARY KEY (w, k))").await;
    let tables = fixture.tables().await;
    let mut reference =
        source(&fixture.database.url(), &SourceOptions::new(format!("ref_{seed}"), 8 << 10))
            .unwrap();
    reference.bulk_read_above = None;
    let from = reference.subscribe(&tables, None).await.unwrap();
    let begin = fixture.source.subscribe(&tables, None).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let url: Arc<str> = fixture.database.url().into();
    let writers: Vec<_> =
        (0..2).map(|writer| tokio::spawn(write(url.clone(), writer, seed, stop.clone()))).collect();
    let mut reader = Reader {
        fixture: &fixture,
        dice: Dice(seed),
        stream: None,
        said: Vec::new(),
        open: Vec::new(),
        reached: vec![(begin, 0)],
        acknowledged: 0,
        seen_in_bulk: 0,
        seen_streaming: 0,
    };
    for _ in 0..STEPS {
        reader.step().await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    if reader.stream.is_none() {
        reader.resume().await;
    }
    let end = fixture.source.mark(EPOCH).await.unwrap();
    let mut stream = reader.stream.take().unwrap();
    loop {
        let transaction = stream.next().await.unwrap();
        let over = transaction.complete && transaction.version >= end;
        reader.receive(transaction);
        if over {
            break;
        }
    }
    let expected = all_said(&fixture, &reference, &from).await;
    assert!(expected.len() > 1000, "seed {seed}: only {} changes", expected.len());
    let differs = reader.said.iter().zip(&expected).position(|(said, expected)| said != expected);
    assert_eq!(differs, None, "seed {seed}: {:?}", differs.map(|at| &reader.said[at]));
    assert_eq!(reader.said.len(), expected.len(), "seed {seed}");
    (reader.seen_in_bulk, reader.seen_streaming)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_of_feed_and_no_kill_loses_or_repeats_anything() {
    let first = std::env::var("DRIFTLESS_TEST_SEED").ok().map(|seed| seed.parse().unwrap());
    let (mut in_bulk, mut streaming) = (0, 0);
    for seed in first.map_or(1..=SEEDS, |seed: u64| seed..=seed) {
        let seen = simulate(seed).await;
        in_bulk += seen.0;
        streaming += seen.1;
    }
    assert!(in_bulk > 0 && streaming > 0, "seen in bulk {in_bulk} times, streaming {streaming}");
}
