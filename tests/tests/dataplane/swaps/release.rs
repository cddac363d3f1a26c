//! More changes of the lookup table, for which a landing has no time.

use anyhow::Result;

use super::each_goes_where_a_table_says;

#[test]
fn when_the_table_changes_a_thousand_times_under_packets_then_each_goes_where_a_table_says() -> Result<()> {
    each_goes_where_a_table_says(1000)
}
