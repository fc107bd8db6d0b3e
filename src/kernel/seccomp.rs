//! The static seccomp filter: refuses the calls that could touch the supervisor, assembled as classic BPF before fork.
//!
//! It must not make any call wait (no user notification) and must not kill: a refused call answers an errno. Pids are
//! 32-bit values in 64-bit registers, and the kernel ignores the upper half, so only the lower half is compared.
//! Invariant: whatever is not refused by name is allowed; another architecture or x32 is refused whole.

use nix::errno::Errno;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_ABOVE: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
const ALLOW: u32 = 0x7fff_0000; // SECCOMP_RET_ALLOW
const ERRNO: u32 = 0x0005_0000; // SECCOMP_RET_ERRNO
/// Offsets in `struct seccomp_data`; both supported architectures are little-endian.
const AT_NUMBER: u32 = 0;
const AT_ARCH: u32 = 4;
const AT_ARGS: u32 = 16;
#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e; // AUDIT_ARCH_X86_64
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7; // AUDIT_ARCH_AARCH64
/// `__X32_SYSCALL_BIT`; no native number comes near it on either architecture.
const X32: u32 = 0x4000_0000;

/// What the filter is made from.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The pid nobody may touch.
    pub supervisor: i32,
    /// The number of its other thread, by which it can be reached as well.
    pub thread: Option<i32>,
    /// Its process group; 0 where the group's leader is outside this PID namespace.
    pub group: i32,
    /// Whether it is PID 1: `kill(-1)` passes over it then (kill(2)).
    pub pid1: bool,
    /// Whether Landlock scopes signals; where it does not, the calls whose target BPF cannot see are refused whole.
    pub scoped: bool,
    /// Whether a CPU is kept free: the mask is behind a pointer, so `sched_setaffinity` is refused whole then.
    pub reserved_cpu: bool,
    /// Whether only AF_UNIX sockets may be made.
    pub network_deny: bool,
}

/// One comparison of an argument's lower half.
#[derive(Debug, Clone, Copy)]
enum Test {
    Is(u32, u32),
    Not(u32, u32),
    /// One of the supervisor's numbers.
    Me(u32),
}
use Test::{Is, Me, Not};

/// The program, ready for the child.
#[derive(Debug)]
pub struct Filter {
    program: Vec<libc::sock_filter>,
}

impl Filter {
    /// Assembles the program.
    #[must_use]
    pub fn assemble(wanted: &Wanted) -> Self {
        let mut program = vec![
            op(LOAD, 0, 0, AT_ARCH),
            op(JUMP_EQUAL, 1, 0, NATIVE),
            refuse(Errno::EPERM),
            op(LOAD, 0, 0, AT_NUMBER),
            op(JUMP_ABOVE, 0, 1, X32),
            refuse(Errno::ENOSYS),
        ];
        let numbers: Vec<u32> =
            [Some(wanted.supervisor), wanted.thread].into_iter().flatten().map(i32::cast_unsigned).collect();
        let mut blocks = Vec::new();
        rules(wanted, &mut |number, errno, clauses| {
            if let Ok(number) = u32::try_from(number) {
                blocks.push((number, block(errno, clauses, &numbers)));
            }
        });
        blocks.sort_unstable_by_key(|&(number, _)| number);
        search(&blocks, &mut program);
        Self { program }
    }

    /// Installs it for this process and whatever it starts (seccomp(2)); needs `no_new_privs` or CAP_SYS_ADMIN.
    ///
    /// # Errors
    /// The errno of `prctl(PR_SET_SECCOMP)`.
    pub fn install(&self) -> Result<(), Errno> {
        let len = libc::c_ushort::try_from(self.program.len()).map_err(|_| Errno::EINVAL)?;
        let program = libc::sock_fprog { len, filter: self.program.as_ptr().cast_mut() };
        // SAFETY: PR_SET_SECCOMP reads a sock_fprog whose `filter` points at `len` instructions; both live through the
        // call, and the kernel copies and does not write them.
        let result =
            unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0usize, 0usize) };
        Errno::result(result).map(drop)
    }
}

const fn op(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

const fn refuse(errno: Errno) -> libc::sock_filter {
    op(RETURN, 0, 0, ERRNO | (errno as i32).cast_unsigned())
}

/// The rule of a call by halving: the kernel walks through the filter once for each number when it is installed (it keeps which are
/// always allowed), and for each of the others at every call.
fn search(rules: &[(u32, Vec<libc::sock_filter>)], program: &mut Vec<libc::sock_filter>) {
    let (below, above) = rules.split_at(rules.len() / 2);
    let Some((number, block)) = above.first() else { return program.push(op(RETURN, 0, 0, ALLOW)) };
    if below.is_empty() {
        // Where it is another one: to the block's last instruction, which allows.
        let away = u8::try_from(block.len().saturating_sub(1)).unwrap_or(u8::MAX);
        program.push(op(JUMP_EQUAL, 0, away, *number));
        program.extend(block);
        return;
    }
    let at = program.len();
    program.push(op(JUMP_ABOVE, 0, 1, *number));
    program.push(op(JUMP, 0, 0, 0));
    let from = program.len();
    search(below, program);
    let length = program.len() - from;
    if let Some([near, far]) = program.get_mut(at..from) {
        far.k = u32::try_from(length).unwrap_or(u32::MAX);
        // A conditional jump reaches 255 instructions, the other one all of them.
        near.jt = u8::try_from(length + 1).unwrap_or(0);
    }
    search(above, program);
}

/// Refused where every test of one clause holds; a clause without tests always does. One that speaks of the supervisor is tried for
/// each of its `numbers`.
fn block(errno: Errno, clauses: &[&[Test]], numbers: &[u32]) -> Vec<libc::sock_filter> {
    let mut out = Vec::new();
    let times = |clause: &[Test]| if clause.iter().any(|test| matches!(test, Me(_))) { numbers.len() } else { 1 };
    for (clause, number) in
        clauses.iter().flat_map(|clause| numbers.iter().take(times(clause)).map(move |number| (clause, *number)))
    {
        for (i, test) in clause.iter().enumerate() {
            // To the next clause: over the tests that remain (two instructions each) and this clause's return.
            let away = u8::try_from((clause.len() - i - 1) * 2 + 1).unwrap_or(u8::MAX);
            let (arg, value, jt, jf) = match *test {
                Is(arg, value) => (arg, value, 0, away),
                Me(arg) => (arg, number, 0, away),
                Not(arg, value) => (arg, value, away, 0),
            };
            out.push(op(LOAD, 0, 0, AT_ARGS + 8 * arg));
            out.push(op(JUMP_EQUAL, jt, jf, value));
        }
        out.push(refuse(errno));
    }
    out.push(op(RETURN, 0, 0, ALLOW));
    out
}

/// Takes one call, what it answers, and when.
type Emit<'a> = dyn FnMut(libc::c_long, Errno, &[&[Test]]) + 'a;

/// The table. A call appears once.
fn rules(w: &Wanted, rule: &mut Emit<'_>) {
    const EVERY: &[&[Test]] = &[&[]];
    // A group of 0 is one we cannot name; "-0" would be the caller's own group.
    let known = w.group > 0;
    let group = w.group.cast_unsigned();
    let minus_group = w.group.wrapping_neg().cast_unsigned();
    let first = &[Me(0)][..];
    let second = &[Me(1)][..];

    for number in [
        libc::SYS_prlimit64,
        libc::SYS_sched_setscheduler,
        libc::SYS_sched_setparam,
        libc::SYS_sched_setattr,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_open,
        libc::SYS_tkill,
        libc::SYS_rt_sigqueueinfo,
    ] {
        rule(number, Errno::EPERM, &[first]);
    }
    let affinity = if w.reserved_cpu { EVERY } else { &[first] };
    rule(libc::SYS_sched_setaffinity, Errno::EPERM, affinity);
    for number in [libc::SYS_tgkill, libc::SYS_rt_tgsigqueueinfo] {
        rule(number, Errno::EPERM, &[first, second]);
    }
    // setpriority(2) counts which from 0, ioprio_set(2) from 1. "User" always reaches the supervisor, of the same UID.
    for (number, base) in [(libc::SYS_setpriority, 0), (libc::SYS_ioprio_set, 1)] {
        let process = &[Is(0, base), Me(1)][..];
        let user = &[Is(0, base + 2)][..];
        let by_group = &[Is(0, base + 1), Is(1, group)][..];
        let clauses = [process, user, by_group];
        rule(number, Errno::EPERM, clauses.get(..if known { 3 } else { 2 }).unwrap_or(&clauses));
    }
    // PTRACE_ATTACH and PTRACE_SEIZE.
    rule(libc::SYS_ptrace, Errno::EPERM, &[&[Is(0, 16), Me(1)], &[Is(0, 0x4206), Me(1)]]);
    if known {
        // Into the supervisor's group, which one that shares its terminal could: "my own group" would be the supervisor's.
        rule(libc::SYS_setpgid, Errno::EPERM, &[&[Is(1, group)]]);
    }
    let mut kill = vec![first];
    let to_group = [Is(0, minus_group)];
    let to_all = [Is(0, u32::MAX)];
    if known && w.group > 1 {
        kill.push(&to_group);
    }
    // kill(-1) passes over PID 1 (kill(2)), and "-1" cannot name group 1.
    if !w.pid1 {
        kill.push(&to_all);
    }
    rule(libc::SYS_kill, Errno::EPERM, &kill);
    rule(libc::SYS_pidfd_getfd, Errno::EPERM, EVERY);
    let own = [Is(1, 8), Me(2)]; // F_SETOWN
    let own_group = [Is(1, 8), Is(2, minus_group)];
    let own_ex = [Is(1, 15)]; // F_SETOWN_EX: its target is behind a pointer
    let mut fcntl = vec![&own[..]];
    if known {
        fcntl.push(&own_group);
    }
    if !w.scoped {
        fcntl.push(&own_ex);
        // It also takes a descriptor of /proc/PID. Callers fall back to kill(2) on ENOSYS.
        rule(libc::SYS_pidfd_send_signal, Errno::ENOSYS, EVERY);
    }
    rule(libc::SYS_fcntl, Errno::EPERM, &fcntl);
    // FIOSETOWN, SIOCSPGRP (targets behind pointers), TIOCSTI and TIOCLINUX (type into the terminal of others).
    rule(libc::SYS_ioctl, Errno::EPERM, &[&[Is(1, 0x8901)], &[Is(1, 0x8902)], &[Is(1, 0x5412)], &[Is(1, 0x541c)]]);
    // It would do what is refused here, unseen; libraries fall back on ENOSYS.
    for number in [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register] {
        rule(number, Errno::ENOSYS, EVERY);
    }
    if w.network_deny {
        rule(libc::SYS_socket, Errno::EACCES, &[&[Not(0, 1)]]); // AF_UNIX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted = Wanted {
        supervisor: 77,
        thread: None,
        group: 70,
        pid1: false,
        scoped: true,
        reserved_cpu: false,
        network_deny: false,
    };
    const PASS: u32 = ALLOW;

    /// Runs the program as the kernel would.
    fn run(wanted: &Wanted, arch: u32, number: libc::c_long, args: &[u64]) -> u32 {
        steps(&Filter::assemble(wanted).program, arch, number, args).0
    }

    /// What the program answers, and after how many instructions.
    fn steps(program: &[libc::sock_filter], arch: u32, number: libc::c_long, args: &[u64]) -> (u32, usize) {
        let (mut pc, mut acc, mut steps) = (0usize, 0u32, 0);
        loop {
            let i = program[pc];
            pc += 1;
            steps += 1;
            let jump = |yes| usize::from(if yes { i.jt } else { i.jf });
            match i.code {
                LOAD => {
                    acc = match i.k {
                        AT_NUMBER => u32::try_from(number).unwrap(),
                        AT_ARCH => arch,
                        at => args
                            .get(((at - AT_ARGS) / 8) as usize)
                            .copied()
                            .map_or(0, |arg| u32::try_from(arg & 0xffff_ffff).unwrap()),
                    };
                }
                JUMP_EQUAL => pc += jump(acc == i.k),
                JUMP_ABOVE => pc += jump(acc >= i.k),
                JUMP => pc += i.k as usize,
                RETURN => return (i.k, steps),
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn errno(e: Errno) -> u32 {
        ERRNO | e as u32
    }

    fn call(number: libc::c_long, args: &[i64]) -> u32 {
        run(&WANTED, NATIVE, number, &args.iter().map(|a| a.cast_unsigned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_supervisor_is_refused_and_others_are_not() {
        let eperm = errno(Errno::EPERM);
        for n in [libc::SYS_prlimit64, libc::SYS_kill, libc::SYS_tkill, libc::SYS_sched_setaffinity] {
            assert_eq!(call(n, &[77]), eperm);
            assert_eq!(call(n, &[0x1_0000_004d]), eperm, "the upper half does not count");
            assert_eq!(call(n, &[78]), PASS);
            assert_eq!(call(n, &[0]), PASS);
        }
        assert_eq!(call(libc::SYS_tgkill, &[5, 77]), eperm);
        assert_eq!(call(libc::SYS_kill, &[-1, 15]), eperm);
        assert_eq!(call(libc::SYS_kill, &[-70, 15]), eperm);
        assert_eq!(call(libc::SYS_kill, &[-71, 15]), PASS);
        assert_eq!(call(libc::SYS_setpgid, &[0, 70]), eperm);
        assert_eq!(call(libc::SYS_setpgid, &[0, 0]), PASS);
        assert_eq!(call(libc::SYS_setpriority, &[0, 77]), eperm);
        assert_eq!(call(libc::SYS_setpriority, &[0, 0]), PASS);
        assert_eq!(call(libc::SYS_setpriority, &[1, 70]), eperm);
        assert_eq!(call(libc::SYS_setpriority, &[1, 0]), PASS);
        assert_eq!(call(libc::SYS_setpriority, &[2, 0]), eperm);
        assert_eq!(call(libc::SYS_ioprio_set, &[1, 77]), eperm);
        assert_eq!(call(libc::SYS_ioprio_set, &[3, 0]), eperm);
        assert_eq!(call(libc::SYS_ptrace, &[0x4206, 77]), eperm);
        assert_eq!(call(libc::SYS_ptrace, &[0, 0]), PASS);
        assert_eq!(call(libc::SYS_fcntl, &[3, 8, 77]), eperm);
        assert_eq!(call(libc::SYS_fcntl, &[3, 8, 78]), PASS);
        assert_eq!(call(libc::SYS_ioctl, &[0, 0x5412]), eperm);
        assert_eq!(call(libc::SYS_ioctl, &[0, 0x5401]), PASS);
        assert_eq!(call(libc::SYS_io_uring_setup, &[1]), errno(Errno::ENOSYS));
        assert_eq!(call(libc::SYS_read, &[77]), PASS);
    }

    #[test]
    fn each_call_has_its_own_rule_and_no_other() {
        let all = Wanted { network_deny: true, scoped: false, ..WANTED };
        let mut numbers = Vec::new();
        rules(&all, &mut |number, _, _| numbers.push(number));
        let named = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), named, "a call appears once");
        let program = Filter::assemble(&all).program;
        for number in 0..1024 {
            // Refused by some arguments where it has a rule, and by none where it has not.
            let tries = [[77, 77], [0, 77], [1, 77], [8, 77], [2, 0], [3, 0], [16, 77], [0, 0x8901], [0, 15], [0, 70]];
            let refused = tries.iter().any(|args| steps(&program, NATIVE, number, args).0 != PASS);
            assert_eq!(refused, numbers.binary_search(&number).is_ok(), "{number}");
            let most = steps(&program, NATIVE, number, &[]).1;
            assert!(most <= 24, "{number}: {most} instructions");
        }
    }

    #[test]
    fn a_part_that_is_too_long_for_a_short_jump_is_jumped_over() {
        let allow = op(RETURN, 0, 0, ALLOW);
        let rules: Vec<_> = (0..4u32)
            .map(|n| (n * 2, [vec![refuse(Errno::from_raw(n.cast_signed() + 1)); 200], vec![allow]].concat()))
            .collect();
        let mut program = vec![op(LOAD, 0, 0, AT_NUMBER)];
        search(&rules, &mut program);
        for n in 0..4u32 {
            assert_eq!(steps(&program, NATIVE, i64::from(n * 2), &[]).0, ERRNO | (n + 1));
            assert_eq!(steps(&program, NATIVE, i64::from(n * 2 + 1), &[]).0, PASS);
        }
    }

    #[test]
    fn foreign_calls_are_refused_whole() {
        assert_eq!(run(&WANTED, 0x4000_0003, libc::SYS_read, &[]), errno(Errno::EPERM));
        assert_eq!(run(&WANTED, NATIVE, 0x4000_0000, &[]), errno(Errno::ENOSYS));
    }

    #[test]
    fn as_pid_1_everybody_may_be_signalled_and_group_0_is_ours() {
        let w = Wanted { supervisor: 1, group: 0, pid1: true, scoped: false, ..WANTED };
        let kill = |pid: i64| run(&w, NATIVE, libc::SYS_kill, &[pid.cast_unsigned()]);
        assert_eq!((kill(1), kill(-1), kill(0)), (errno(Errno::EPERM), PASS, PASS));
        assert_eq!(run(&w, NATIVE, libc::SYS_pidfd_send_signal, &[]), errno(Errno::ENOSYS));
        let w = Wanted { group: 1, ..w };
        assert_eq!(run(&w, NATIVE, libc::SYS_kill, &[u64::MAX]), PASS);
        assert_eq!(run(&w, NATIVE, libc::SYS_kill, &[1]), errno(Errno::EPERM));
    }

    #[test]
    fn network_deny_and_the_reserved_cpu() {
        let w = Wanted { network_deny: true, reserved_cpu: true, ..WANTED };
        assert_eq!(run(&w, NATIVE, libc::SYS_socket, &[1]), PASS);
        for domain in [2, 10, 16, 17, 40] {
            assert_eq!(run(&w, NATIVE, libc::SYS_socket, &[domain]), errno(Errno::EACCES));
        }
        assert_eq!(run(&w, NATIVE, libc::SYS_sched_setaffinity, &[0]), errno(Errno::EPERM));
    }
}
