//! Tests with large amounts of data.

mod release;

use balancer_fleet::engine::{Answer, LONGEST_VALUE, News, Request};

use crate::lab::{Lab, keys, put};

#[test]
fn when_many_large_values_are_read_then_they_are_whole_and_the_watch_goes_on() {
    Lab::new(1).run(async |lab| {
        let mut driver = lab.join(10).await;
        let mut watcher = lab.join(10).await;
        let mut expected = Vec::new();
        for large in 0..40 {
            let key = format!("bulk/large/{large:03}");
            driver.made(vec![put(&key, vec![large; LONGEST_VALUE])]).await;
            expected.push((key, LONGEST_VALUE));
        }
        for page in 0..40 {
            let names: Vec<_> = (0..100).map(|number| format!("bulk/small/{page:03}/{number:03}")).collect();
            driver.made(names.iter().map(|key| put(key, "x")).collect()).await;
            expected.extend(names.into_iter().map(|key| (key, 1)));
        }
        let reading = watcher.ask(|ticket| Request::Read { ticket, prefix: "bulk/".to_owned() });
        for number in 0..50 {
            driver.made(vec![put("live/counter", number.to_string())]).await;
        }
        let (mut changes, mut found) = (0, None);
        while changes < 50 || found.is_none() {
            match watcher.next().await {
                News::Changed { put, .. } => {
                    assert_eq!(put[0].value, changes.to_string().into_bytes());
                    changes += 1;
                }
                News::Answered(ticket, Answer::Read(entries)) if ticket == reading => found = Some(entries),
                other => panic!("{other:?}"),
            }
        }
        let found: Vec<_> = found.unwrap().into_iter().map(|entry| (entry.key, entry.value.len())).collect();
        assert_eq!(found, expected);
    });
}

#[test]
fn when_thousands_of_keys_are_copied_then_the_copy_is_whole_and_in_order() {
    Lab::new(1).run(async |lab| {
        let mut driver = lab.join(10).await;
        let mut expected = Vec::new();
        for page in 0..60 {
            let names: Vec<_> = (0..100).map(|number| format!("live/{page:03}/{number:03}")).collect();
            let length = if page % 10 == 0 { 10_000 } else { 10 };
            driver.made(names.iter().map(|key| put(key, vec![7; length])).collect()).await;
            expected.extend(names);
        }
        let mut late = crate::lab::Driver::new(lab.settings(10));
        assert_eq!(keys(&late.joined().await.1), expected);
    });
}
