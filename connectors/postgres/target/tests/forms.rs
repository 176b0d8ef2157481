//! In which form rows are sent, and that it makes no difference to what arrives.

use super::support::*;
use crate::change::{Applied, TableBatch};
use crate::error::Code;
use crate::postgres::target::row_writer::Form;

const ROWS: &str = "SELECT k, a, b FROM public.t ORDER BY k";

impl Fixture {
    /// Whether rows of the first table that was written are sent in binary.
    fn is_binary(&self) -> bool {
        matches!(self.target.session.stages[0].form(), Form::Binary(_))
    }
}

/// Also deletes a row that is not there, which keeps a batch from going straight into the table.
fn staged(batch: TableBatch) -> TableBatch {
    batch.delete(1, &["-1"])
}

#[tokio::test]
async fn a_value_that_is_not_canonical_has_its_table_written_as_text() {
    let mut fixture = Fixture::with(&usual(), false).await;
    fixture.done(vec![part(&usual()).upsert(1, &["1", "a", "\\"])]).await;
    assert!(fixture.is_binary());
    fixture
        .done(vec![part(&usual()).upsert(2, &["2", "b", "~"]).upsert(2, &["+3", "c", ""])])
        .await;
    assert!(!fixture.is_binary());
    fixture.done(vec![staged(part(&usual()).upsert(3, &["4", "d", "\t"]))]).await;
    assert_eq!(fixture.look(ROWS).await, ["1|a|\\", "2|b|~", "3|c|", "4|d|\t"]);
}

#[tokio::test]
async fn a_staged_value_that_is_not_canonical_has_its_table_written_as_text() {
    let mut fixture = Fixture::with(&usual(), false).await;
    fixture.done(vec![staged(part(&usual()).upsert(2, &["1", "a", "~"]))]).await;
    assert!(fixture.is_binary());
    fixture.done(vec![staged(part(&usual()).upsert(3, &[" 1", "b", "-"]))]).await;
    assert!(!fixture.is_binary());
    assert_eq!(fixture.look(ROWS).await, ["1|b|~"]);
}

#[tokio::test]
async fn a_value_of_no_type_is_refused_by_the_server_in_its_own_words() {
    let mut fixture = Fixture::with(&usual(), false).await;
    let mut batch = part(&usual());
    for number in 0..50 {
        let key = if number == 31 { "one".to_owned() } else { number.to_string() };
        batch = batch.upsert(number + 1, &[&key, "a", "~"]);
    }
    let refused = fixture.apply(vec![batch]).await;
    check_error(refused, of_table(&usual()), Code::PoisonRow, &[&key(&["one"]).hash(), "22P02"]);
    // Bytes that are no text have a binary form; it is the same refusal.
    let fine = part(&usual()).upsert(1, &["1", "a", "~"]);
    let nul = fine.clone().upsert(2, &["2", "a\0b", "~"]);
    let mut fixture = Fixture::with(&usual(), false).await;
    let refused = fixture.apply(vec![nul]).await;
    check_error(refused, of_table(&usual()), Code::PoisonRow, &[&key(&["2"]).hash(), "22021"]);
    assert!(fixture.is_binary());
    assert_eq!(fixture.apply(vec![fine]).await, Ok(Applied::Done));
}

#[tokio::test]
async fn a_column_that_got_another_type_is_not_given_the_bytes_of_the_old_one() {
    let narrow = table("t", &["k bigint", "a integer"]);
    let mut fixture = Fixture::with(&narrow, false).await;
    fixture.done(vec![part(&narrow).upsert(1, &["1", "5"])]).await;
    fixture.execute("ALTER TABLE public.t ALTER a TYPE real").await;
    fixture.done(vec![part(&narrow).upsert(2, &["2", "6"])]).await;
    fixture.done(vec![staged(part(&narrow).upsert(3, &["3", "7"]))]).await;
    assert!(fixture.is_binary());
    assert_eq!(fixture.look("SELECT k, a FROM public.t ORDER BY k").await, ["1|5", "2|6", "3|7"]);
}

#[tokio::test]
async fn values_that_come_in_binary_are_passed_on() {
    let narrow = table("t", &["k bigint", "a integer", "b numeric"]);
    let mut fixture = Fixture::with(&narrow, false).await;
    let row = |log, cells: &[&str]| in_binary(part(&narrow).upsert(log, cells));
    fixture.done(vec![row(1, &["1", "5", "0.50"])]).await;
    fixture.done(vec![staged(row(2, &["2", "~", "10000.10"]))]).await;
    // Of an old row, one column; of another that is not canonical, its key.
    fixture.done(vec![row(3, &["1", "-", "NaN"])]).await;
    assert!(fixture.is_binary());
    fixture.done(vec![row(4, &["+3", "-8", "0.0001"])]).await;
    assert!(!fixture.is_binary());
    fixture.done(vec![staged(row(5, &["4", "9", "1234.5"]))]).await;
    let expected = ["1|5|NaN", "2|~|10000.10", "3|-8|0.0001", "4|9|1234.5"];
    assert_eq!(fixture.look(ROWS).await, expected);
}

#[tokio::test]
async fn a_value_that_came_in_binary_becomes_one_of_the_new_type() {
    let narrow = table("t", &["k bigint", "a integer"]);
    let mut fixture = Fixture::with(&narrow, false).await;
    let row = |log, cells: &[&str]| in_binary(part(&narrow).upsert(log, cells));
    fixture.done(vec![row(1, &["1", "5"])]).await;
    // Of as many bytes, which would be read as something else.
    fixture.execute("ALTER TABLE public.t ALTER a TYPE real").await;
    fixture.done(vec![row(2, &["2", "6"])]).await;
    fixture.done(vec![staged(row(3, &["3", "7"]))]).await;
    assert!(fixture.is_binary());
    assert_eq!(fixture.look("SELECT k, a FROM public.t ORDER BY k").await, ["1|5", "2|6", "3|7"]);
}

#[tokio::test]
async fn a_row_in_binary_that_is_refused_is_named() {
    let mut fixture = Fixture::with(&usual(), false).await;
    fixture.execute("ALTER TABLE public.t ADD CHECK (a <> 'bad')").await;
    let mut batch = part(&usual());
    for number in 0..50 {
        let a = if number == 31 { "bad" } else { "good" };
        batch = batch.upsert(number + 1, &[&number.to_string(), a, "~"]);
    }
    let refused = fixture.apply(vec![in_binary(batch)]).await;
    check_error(refused, of_table(&usual()), Code::PoisonRow, &[&key(&["31"]).hash(), "23514"]);
}

#[tokio::test]
async fn a_table_with_a_type_that_is_left_to_text_is_written_as_text() {
    let shapes = table("t", &["k bigint", "a point", "b text"]);
    let mut fixture = Fixture::with(&shapes, false).await;
    fixture.done(vec![part(&shapes).upsert(1, &["1", "(1,2.5)", "\\"])]).await;
    fixture.done(vec![staged(part(&shapes).upsert(2, &["2", "~", "x"]))]).await;
    assert!(!fixture.is_binary());
    assert_eq!(fixture.look(ROWS).await, ["1|(1,2.5)|\\", "2|~|x"]);
}
