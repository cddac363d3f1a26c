#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| balancer_tests::fuzz::netlink(bytes));
