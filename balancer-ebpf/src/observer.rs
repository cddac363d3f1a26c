//! Programs that observe the XDP program where it is entered and left. They are an object of their own, and attached only while
//! `balancer trace` or `balancer capture` runs. They read packets and the program's counters, and change neither.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod entry {
    use core::{hint::black_box, mem::offset_of, ptr};

    use aya_ebpf::{
        bindings::{xdp_action::XDP_PASS, xdp_md},
        helpers::{
            bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_probe_read_kernel,
            generated::bpf_probe_read_kernel as copy, generated::bpf_ringbuf_output, generated::bpf_xdp_get_buff_len,
        },
        macros::{fentry, fexit, map},
        maps::{Array, HashMap, PerCpuArray, RingBuf},
        programs::{FEntryContext, FExitContext},
    };
    use balancer_common::{
        map_types::{BackendStats, DropStats, FAMILY_V4, FAMILY_V6, MemoryStats, ReplyStats},
        tracing::{
            ANSWERED_ECHO, ANSWERED_REJECTED, ANSWERED_TOO_BIG, Address, Before, Draft, Head, MAX_KEPT, MAX_VIPS,
            MAX_WATCHED, MEMORY_EVICTED, MEMORY_FULL, MEMORY_LIMITED, MEMORY_RECORDED, Observed, SCANNED, Settings,
        },
        verdict::{Decision, DropReason, MOVE_COUNTERS},
    };

    #[map]
    static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

    /// The virtual addresses; the values mean nothing.
    #[map]
    static VIPS: HashMap<Address, u32> = HashMap::with_max_entries(MAX_VIPS, 0);

    /// The ids of backends whose counters are compared.
    #[map]
    static WATCHED: Array<u32> = Array::with_max_entries(MAX_WATCHED, 0);

    #[map]
    static BEFORE: PerCpuArray<Before> = PerCpuArray::with_max_entries(1, 0);

    #[map]
    static BEFORE_BACKENDS: PerCpuArray<BackendStats> = PerCpuArray::with_max_entries(MAX_WATCHED, 0);

    #[map]
    static DRAFT: PerCpuArray<Draft> = PerCpuArray::with_max_entries(1, 0);

    #[map]
    static OBSERVED: Array<Observed> = Array::with_max_entries(1, 0);

    #[map]
    static EVENTS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

    // The observed program's own maps: the command puts them in place of these.
    #[map]
    static DROP_STATS: PerCpuArray<DropStats> = PerCpuArray::with_max_entries(1, 0);

    #[map]
    static REPLY_STATS: PerCpuArray<ReplyStats> = PerCpuArray::with_max_entries(1, 0);

    #[map]
    static MEMORY_STATS: PerCpuArray<MemoryStats> = PerCpuArray::with_max_entries(1, 0);

    #[map]
    static BACKEND_STATS: Array<BackendStats> = Array::with_max_entries(1, 0);

    /// `struct xdp_buff` begins with these, in every version.
    const DATA: usize = 0;
    const DATA_END: usize = 8;

    #[fentry]
    fn entered(context: FEntryContext) -> Option<()> {
        let buffer: *mut xdp_md = context.arg(0);
        let settings = SETTINGS.get(0)?;
        let observed = OBSERVED.get_ptr(0)?;
        // SAFETY: a map value.
        if unsafe { (&raw const (*observed).sent).read_volatile() } >= settings.limit {
            return None;
        }
        let before = BEFORE.get_ptr_mut(0)?;
        let draft = DRAFT.get_ptr_mut(0)?;
        // SAFETY: rows of this CPU, which this program alone uses until its other half has run.
        let (before, draft) = unsafe { (&mut *before, &mut *draft) };
        before.buffer = 0;
        let found = scan(buffer, draft);
        before.matches = u32::from(found.concerns(settings));
        before.vip = u32::from(is_vip(&found.destination));
        before.drops = *DROP_STATS.get(0)?;
        before.replies = *REPLY_STATS.get(0)?;
        before.memory = *MEMORY_STATS.get(0)?;
        before.watched = if before.vip != 0 && before.matches != 0 { settings.watched } else { 0 };
        if before.watched != 0 {
            each_watched(before.watched, settings.rows, |place, _, now| {
                if let Some(place) = BEFORE_BACKENDS.get_ptr_mut(place) {
                    // SAFETY: a row of this CPU.
                    unsafe { *place = *now };
                }
            });
        }
        // SAFETY: a plain helper call.
        let now = unsafe { bpf_ktime_get_ns() };
        // Word by word: a constant would be a map of its own.
        // SAFETY: the head is as many words, and every bit pattern is one.
        unsafe {
            (&raw mut draft.head).cast::<[u64; size_of::<Head>() / 8]>().write_volatile([0; size_of::<Head>() / 8])
        };
        draft.head.came = now;
        describe(buffer, settings, &mut draft.head);
        let (length, kept) = keep(buffer, draft, 0, settings.snaplen)?;
        draft.head.came_length = length;
        draft.head.came_kept = kept;
        before.buffer = buffer as u64;
        Some(())
    }

    #[fexit]
    fn left(context: FExitContext) -> Option<()> {
        let buffer: *mut xdp_md = context.arg(0);
        let action: u32 = context.arg(1);
        let before = BEFORE.get_ptr_mut(0)?;
        let draft = DRAFT.get_ptr_mut(0)?;
        let settings = SETTINGS.get(0)?;
        // SAFETY: as above.
        let (before, draft) = unsafe { (&mut *before, &mut *draft) };
        if before.buffer != buffer as u64 {
            return None;
        }
        before.buffer = 0;
        let found = scan(buffer, draft);
        // A reply may be the client's only now.
        if before.matches == 0 && !found.concerns(settings) {
            return None;
        }
        if before.vip == 0 && !is_vip(&found.source) && (settings.only_vips != 0 || action == XDP_PASS) {
            return None;
        }
        // SAFETY: a plain helper call.
        draft.head.left = unsafe { bpf_ktime_get_ns() };
        draft.head.action = action;
        compare(before, &mut draft.head)?;
        if before.watched != 0 {
            let head = &mut draft.head;
            each_watched(before.watched, settings.rows, |place, id, now| {
                if let Some(then) = BEFORE_BACKENDS.get_ptr(place) {
                    // SAFETY: a row of this CPU.
                    compare_backend(id, unsafe { &*then }, now, head);
                }
            });
        }
        let came_kept = black_box(draft.head.came_kept) as usize;
        if came_kept > MAX_KEPT {
            return None;
        }
        let (length, kept) = keep(buffer, draft, came_kept, settings.snaplen)?;
        draft.head.left_length = length;
        draft.head.left_kept = kept;
        send(draft)
    }

    #[inline(always)]
    fn send(draft: &mut Draft) -> Option<()> {
        let observed = OBSERVED.get_ptr_mut(0)?;
        let kept = black_box(draft.head.came_kept as usize + draft.head.left_kept as usize);
        if kept > 2 * MAX_KEPT {
            return None;
        }
        let size = size_of::<Head>() + kept;
        // SAFETY: the bytes are within the row; a plain helper call.
        let sent = unsafe {
            bpf_ringbuf_output((&raw const EVENTS).cast_mut().cast(), ptr::from_mut(draft).cast(), size as u64, 0)
        };
        // SAFETY: a map value; a word that other CPUs add to as well.
        unsafe { add(if sent == 0 { &raw mut (*observed).sent } else { &raw mut (*observed).lost }) };
        Some(())
    }

    /// # Safety
    /// The pointer is valid for reads and writes.
    #[inline(always)]
    unsafe fn add(word: *mut u64) {
        // SAFETY: one instruction, which changes that word.
        unsafe {
            core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) word, in(reg) 1u64, options(nostack, preserves_flags));
        }
    }

    /// Notes where the packet came in.
    #[inline(always)]
    fn describe(buffer: *const xdp_md, settings: &Settings, head: &mut Head) {
        let rxq: u64 = read(buffer as u64, settings.rxq);
        head.queue = read(rxq, settings.queue);
        head.ifindex = read(read(rxq, settings.device), settings.ifindex);
    }

    /// A member of a structure of the kernel's; 0 where there is none.
    #[inline(always)]
    fn read<T: Default>(structure: u64, place: u32) -> T {
        let from = structure.wrapping_add(u64::from(place));
        // SAFETY: the helper reads any address, and says so where it cannot.
        unsafe { bpf_probe_read_kernel(from as *const T) }.unwrap_or_default()
    }

    /// Copies a frame to `offset`, which is at most [`MAX_KEPT`]. Its length, and how much was copied.
    #[inline(always)]
    fn keep(buffer: *mut xdp_md, draft: &mut Draft, offset: usize, snaplen: u32) -> Option<(u32, u32)> {
        let data: u64 = read(buffer as u64, DATA as u32);
        let end: u64 = read(buffer as u64, DATA_END as u32);
        let linear = black_box(end.wrapping_sub(data).min(u64::from(snaplen)));
        let kept = linear as usize;
        if kept > MAX_KEPT || offset > MAX_KEPT {
            return None;
        }
        // SAFETY: the place is within the row, and the helper reads any address.
        let copied = unsafe {
            let to = (&raw mut draft.bytes).cast::<u8>().add(offset);
            copy(to.cast(), kept as u32, data as *const _)
        };
        // SAFETY: the kernel's buffer; a plain helper call.
        let length = unsafe { bpf_xdp_get_buff_len(buffer) };
        Some((length as u32, if copied == 0 { kept as u32 } else { 0 }))
    }

    struct Found {
        source: Address,
        destination: Address,
        /// The destination of the packet that an ICMP error is about.
        quoted: Address,
    }

    const NOBODY: Address = Address { words: [0; 4], family: 0 };

    impl Found {
        const NOTHING: Self = Self { source: NOBODY, destination: NOBODY, quoted: NOBODY };

        #[inline(always)]
        fn concerns(&self, settings: &Settings) -> bool {
            settings.family == 0
                || is_client(settings, &self.source)
                || is_client(settings, &self.destination)
                || is_client(settings, &self.quoted)
        }
    }

    #[inline(always)]
    fn is_client(settings: &Settings, address: &Address) -> bool {
        let mut differs = settings.family ^ address.family;
        differs |= (address.words[0] ^ settings.client[0]) & settings.mask[0];
        differs |= (address.words[1] ^ settings.client[1]) & settings.mask[1];
        differs |= (address.words[2] ^ settings.client[2]) & settings.mask[2];
        differs |= (address.words[3] ^ settings.client[3]) & settings.mask[3];
        differs == 0
    }

    #[inline(always)]
    fn is_vip(address: &Address) -> bool {
        address.family != 0 && VIPS.get_ptr(address).is_some()
    }

    /// The addresses of a frame.
    #[inline(always)]
    fn scan(buffer: *const xdp_md, draft: &mut Draft) -> Found {
        let data: u64 = read(buffer as u64, DATA as u32);
        let end: u64 = read(buffer as u64, DATA_END as u32);
        draft.scanned = [0; SCANNED / 8];
        let length = black_box(end.wrapping_sub(data).min(SCANNED as u64));
        if length > SCANNED as u64 {
            return Found::NOTHING;
        }
        let bytes = (&raw mut draft.scanned).cast::<u8>();
        // SAFETY: within the row; the helper reads any address.
        if unsafe { copy(bytes.cast(), length as u32, data as *const _) } != 0 {
            return Found::NOTHING;
        }
        // What is beyond the frame is 0, which is no address of anybody.
        let packet = Scanned(bytes);
        let mut at = 12;
        for _ in 0..2 {
            if !matches!(packet.u16(at), 0x8100 | 0x88a8) {
                break;
            }
            at += 4;
        }
        match packet.u16(at) {
            0x0800 => v4(packet, at + 2),
            0x86dd => v6(packet, at + 2),
            _ => Found::NOTHING,
        }
    }

    #[inline(always)]
    fn v4(packet: Scanned, ip: usize) -> Found {
        let (source, destination) = (packet.v4(ip + 12), packet.v4(ip + 16));
        let quoted = if packet.u8(ip + 9) == 1 {
            let header = usize::from(packet.u8(ip) & 15) * 4;
            packet.v4(ip + header + 8 + 16)
        } else {
            NOBODY
        };
        Found { source, destination, quoted }
    }

    #[inline(always)]
    fn v6(packet: Scanned, ip: usize) -> Found {
        let (source, destination) = (packet.v6(ip + 8), packet.v6(ip + 24));
        let quoted = if packet.u8(ip + 6) == 58 { packet.v6(ip + 40 + 8 + 24) } else { NOBODY };
        Found { source, destination, quoted }
    }

    /// The first [`SCANNED`] bytes of a frame. No place that is asked for is beyond them.
    #[derive(Clone, Copy)]
    struct Scanned(*const u8);

    impl Scanned {
        #[inline(always)]
        fn u8(self, at: usize) -> u8 {
            // SAFETY: within the row.
            unsafe { self.0.add(at).read() }
        }

        #[inline(always)]
        fn u16(self, at: usize) -> u16 {
            // SAFETY: within the row.
            u16::from_be(unsafe { self.0.add(at).cast::<u16>().read_unaligned() })
        }

        #[inline(always)]
        fn u32(self, at: usize) -> u32 {
            // SAFETY: within the row.
            unsafe { self.0.add(at).cast::<u32>().read_unaligned() }
        }

        #[inline(always)]
        fn v4(self, at: usize) -> Address {
            Address { words: [self.u32(at), 0, 0, 0], family: FAMILY_V4 as u32 }
        }

        #[inline(always)]
        fn v6(self, at: usize) -> Address {
            let words = [self.u32(at), self.u32(at + 4), self.u32(at + 8), self.u32(at + 12)];
            Address { words, family: FAMILY_V6 as u32 }
        }
    }

    /// Gives each watched backend's place, id and counters of this CPU to `look`.
    #[inline(always)]
    fn each_watched(watched: u32, rows: u32, mut look: impl FnMut(u32, u32, &BackendStats)) {
        // SAFETY: a plain helper call.
        let block = unsafe { bpf_get_smp_processor_id() }.wrapping_mul(rows);
        for place in 0..MAX_WATCHED {
            if place >= watched {
                break;
            }
            let Some(&id) = WATCHED.get(place) else { break };
            if id >= rows {
                continue;
            }
            if let Some(now) = BACKEND_STATS.get(block.wrapping_add(id)) {
                look(place, id, now);
            }
        }
    }

    #[inline(always)]
    fn compare_backend(id: u32, then: &BackendStats, now: &BackendStats, head: &mut Head) {
        if now.packets != then.packets {
            head.backend = id as u16;
            head.forwarded = 1;
        }
        for index in 0..Decision::COUNT {
            if now.decisions[index] != then.decisions[index] {
                head.backend = id as u16;
                head.decision = index as u8 + 1;
            }
        }
        for index in 0..MOVE_COUNTERS {
            if now.moves[index] != then.moves[index] {
                head.moved_from = id as u16;
                head.cause = index as u8 + 1;
            }
        }
    }

    /// What this CPU has counted since.
    #[inline(always)]
    fn compare(before: &Before, head: &mut Head) -> Option<()> {
        let drops = DROP_STATS.get(0)?;
        for index in 0..DropReason::COUNT {
            if drops.reasons[index] != before.drops.reasons[index] {
                head.drop = index as u8 + 1;
            }
        }
        let replies = REPLY_STATS.get(0)?;
        if replies.echo != before.replies.echo {
            head.answered = ANSWERED_ECHO;
        }
        if replies.too_big != before.replies.too_big {
            head.answered = ANSWERED_TOO_BIG;
        }
        if replies.rejected != before.replies.rejected {
            head.answered = ANSWERED_REJECTED;
        }
        let memory = MEMORY_STATS.get(0)?;
        head.memory |= if memory.inserted == before.memory.inserted { 0 } else { MEMORY_RECORDED };
        head.memory |= if memory.evicted == before.memory.evicted { 0 } else { MEMORY_EVICTED };
        head.memory |= if memory.full == before.memory.full { 0 } else { MEMORY_FULL };
        head.memory |= if memory.limited == before.memory.limited { 0 } else { MEMORY_LIMITED };
        Some(())
    }

    const _: () = assert!(offset_of!(Draft, head) == 0 && offset_of!(Draft, bytes) == size_of::<Head>());

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        // SAFETY: nothing that can panic is left in the programs; the verifier would reject an endless loop.
        unsafe { core::hint::unreachable_unchecked() }
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
