//! What `fuzz/` needs of the inside: the encoders, with which a target makes images that are right but for what they say. Behind the
//! feature `fuzzing`.

use std::ops::Range;
use std::path::Path;

use prost::Message;

use super::{
    COMMON, CORE, CoreEntry, MM, MmEntry, PAGEMAP, PSTREE, Pagemap, PagemapEntry, PagemapHead, PstreeEntry, RseqEntry,
    ThreadCoreEntry, ThreadInfoX86, UserX86Regs, VmaEntry, X86_64, write_message,
};
use crate::memory::Vpid;

/// `PE_PARENT`, `PE_LAZY` and `PE_PRESENT`.
pub const FLAGS: [u32; 3] = [super::PE_PARENT, super::PE_LAZY, super::PE_PRESENT];

/// Processes: their ids, and those of their threads.
pub fn pstree(processes: &[(u32, Vec<u32>)]) -> Vec<u8> {
    let mut bytes = words(PSTREE);
    for (pid, threads) in processes {
        message(&mut bytes, &PstreeEntry { pid: *pid, threads: threads.clone() });
    }
    bytes
}

/// A pagemap whose bytes are in `pages-<id>.img`, of runs: first address, number of pages, flags.
pub fn pagemap(pages_id: u32, runs: impl IntoIterator<Item = (u64, u64, u32)>) -> Vec<u8> {
    let mut bytes = words(PAGEMAP);
    message(&mut bytes, &PagemapHead { pages_id });
    for (vaddr, pages, flags) in runs {
        let (flags, nr_pages) = (Some(flags), Some(pages));
        message(&mut bytes, &PagemapEntry { vaddr, compat_nr_pages: 0, in_parent: None, flags, nr_pages });
    }
    bytes
}

/// A mapping, with the fields of `vma_entry`.
#[derive(Debug, Clone, Copy)]
pub struct Mapping {
    /// Its first address.
    pub start: u64,
    /// One past its last.
    pub end: u64,
    /// `MAP_*`.
    pub flags: u32,
    /// `VMA_*`.
    pub status: u32,
    /// Bits by the numbers of `MADV_*`.
    pub advice: u64,
}

/// Mappings, and then as many that consist of nothing.
pub fn mm(mappings: &[Mapping], empty: usize) -> Vec<u8> {
    let entry = |mapping: &Mapping| {
        let Mapping { start, end, flags, status, advice } = *mapping;
        VmaEntry { start, end, flags, status, madv: Some(advice) }
    };
    let mut vmas = MmEntry { vmas: mappings.iter().map(entry).collect() }.encode_to_vec();
    // The key of a mapping, and its length.
    vmas.extend([super::MM_VMAS as u8 * 8 + 2, 0].repeat(empty));
    let mut bytes = words(MM);
    bytes.extend((vmas.len() as u32).to_le_bytes());
    bytes.extend(vmas);
    bytes
}

/// A thread whose stack pointer is this, and that has its restartable sequences at this address, so many bytes of them.
pub fn core(stack: Option<u64>, rseq: Option<(u64, u32)>) -> Vec<u8> {
    let mut bytes = words(CORE);
    let thread_info = Some(ThreadInfoX86 { gpregs: Some(UserX86Regs { sp: stack }) });
    let rseq_entry = rseq.map(|(rseq_abi_pointer, rseq_abi_size)| RseqEntry { rseq_abi_pointer, rseq_abi_size });
    let thread_core = Some(ThreadCoreEntry { rseq_entry });
    message(&mut bytes, &CoreEntry { mtype: X86_64, thread_info, thread_core });
    bytes
}

/// The addresses of each, and its flags.
pub type Runs = Vec<(Range<u64>, u32)>;

/// The number of its pages image and the runs of the pagemap of `vpid`, with their flags; `None` when it is none.
pub fn runs(images: &Path, vpid: Vpid) -> Option<(u32, Runs)> {
    let pagemap = Pagemap::read_any(images, vpid, super::MOST_RUNS).ok()??;
    Some((pagemap.pages_id, pagemap.entries.into_iter().map(|entry| (entry.range, entry.flags)).collect()))
}

fn words(magic: u32) -> Vec<u8> {
    [COMMON.to_le_bytes(), magic.to_le_bytes()].concat()
}

fn message(bytes: &mut Vec<u8>, message: &impl Message) {
    // Into memory nothing fails.
    let _ = write_message(bytes, message);
}
