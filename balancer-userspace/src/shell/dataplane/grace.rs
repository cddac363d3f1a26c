//! The time until nobody reads what was replaced.

use std::time::Duration;

/// Waits until every packet that may be reading a table given up by now has left the program.
pub(super) fn wait_for_packets() {
    // SAFETY: no memory is involved. MEMBARRIER_CMD_GLOBAL waits for an RCU grace period, and XDP programs run inside
    // RCU read-side critical sections.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        // Not offered on this kernel (`nohz_full`). A program run takes microseconds.
        std::thread::sleep(Duration::from_millis(20));
    }
}
