//! Measures how fast the reader parses lines of each format and counts clients.

#![expect(clippy::unwrap_used, reason = "nothing is measured where something fails")]

use std::{fmt::Write as _, hint::black_box};

use balancer_simulate::{
    census::Census,
    format::{Format, Reader},
    lines::Lines,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// The number of lines in each log.
const LINES: u32 = 1_000_000;

/// Makes a log with 100 lines per client on average.
fn log(line: impl Fn(&mut String, [u8; 4], u32)) -> String {
    let mut log = String::new();
    let mut state = 1u32;
    for number in 0..LINES {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let client = (state >> 8) % (LINES / 100);
        line(&mut log, (client.wrapping_mul(2_654_435_761)).to_be_bytes(), number);
    }
    log
}

fn combined(log: &mut String, [a, b, c, d]: [u8; 4], number: u32) {
    let (hour, minute, second) = (number / 50_000, number / 800 % 60, number / 14 % 60);
    writeln!(
        log,
        "{a}.{b}.{c}.{d} - - [10/Oct/2000:{hour:02}:{minute:02}:{second:02} +0000] \"GET /products/{number}?page=2 HTTP/1.1\" \
         200 5123 \"https://www.example.com/products\" \"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\""
    )
    .unwrap();
}

fn haproxy(log: &mut String, [a, b, c, d]: [u8; 4], number: u32) {
    let (hour, minute, second) = (number / 50_000, number / 800 % 60, number / 14 % 60);
    writeln!(
        log,
        "Oct 10 {hour:02}:{minute:02}:{second:02} lb1 haproxy[14389]: {a}.{b}.{c}.{d}:33317 \
         [10/Oct/2000:{hour:02}:{minute:02}:{second:02}.655] http-in static/srv1 10/0/30/69/109 200 2750 - - ---- 1/1/1/1/0 \
         0/0 {{1wt.eu}} {{}} \"GET /products/{number} HTTP/1.1\""
    )
    .unwrap();
}

fn json(log: &mut String, [a, b, c, d]: [u8; 4], number: u32) {
    let (hour, minute, second) = (number / 50_000, number / 800 % 60, number / 14 % 60);
    writeln!(
        log,
        "{{\"time_iso8601\":\"2000-10-10T{hour:02}:{minute:02}:{second:02}+00:00\",\"remote_addr\":\"{a}.{b}.{c}.{d}\",\
         \"request\":\"GET /products/{number} HTTP/1.1\",\"status\":200,\"bytes\":5123}}"
    )
    .unwrap();
}

fn list(log: &mut String, [a, b, c, d]: [u8; 4], _: u32) {
    writeln!(log, "{a}.{b}.{c}.{d}").unwrap();
}

fn lines(c: &mut Criterion) {
    let formats: [(&str, String); 4] =
        [("combined", log(combined)), ("haproxy", log(haproxy)), ("json:remote_addr", log(json)), ("list", log(list))];
    let mut group = c.benchmark_group("lines");
    group.throughput(Throughput::Elements(LINES.into())).sample_size(10);
    for (format, log) in &formats {
        let format: Format = format.parse().unwrap();
        group.bench_function(format.to_string(), |bencher| {
            bencher.iter(|| {
                let mut census = Census::default();
                let lines = Lines::new(log.as_bytes()).unwrap();
                let tally = census.read(lines, &mut Reader::new(format.clone())).unwrap();
                assert_eq!((tally.lines, tally.unreadable), (LINES.into(), 0));
                black_box(census);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, lines);
criterion_main!(benches);
