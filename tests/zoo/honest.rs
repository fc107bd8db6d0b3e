//! Honest programs: `guard` lets each of them do what it does without gracekeeper, `confined` where it is told to work, and
//! nowhere else.

use super::place::*;
use std::path::Path;
use std::sync::OnceLock;

/// What has to be there, and what is done with it. Each begins in an empty directory.
const PROGRAMS: [(&str, &str); 12] = [
    ("/bin/sh", "for i in 1 2 3; do echo $i | cat >> f; done; trap 'echo bye' EXIT; (sleep 0.1 & wait); kill -0 $$; cat f"),
    (
        "/usr/bin/python3",
        "/usr/bin/python3 -c 'import tempfile,subprocess,multiprocessing,socket,os,signal
f=tempfile.NamedTemporaryFile(); f.write(b\"x\"); f.flush()
print(subprocess.run([\"sh\",\"-c\",\"kill -TERM $$\"]).returncode)
s=socket.socketpair(); s[0].send(b\"y\"); print(s[1].recv(1))
p=subprocess.Popen([\"sleep\",\"9\"],start_new_session=True); os.killpg(p.pid,9); print(p.wait())
with multiprocessing.Pool(2) as p: print(p.map(abs,[-1,-2]))
os.sched_setaffinity(0,os.sched_getaffinity(0)); os.nice(1); print(os.getpriority(0,0)>0)'",
    ),
    (
        "/usr/bin/python3",
        "/usr/bin/python3 -m pip --version && /usr/bin/python3 -c 'import zipfile
z=zipfile.ZipFile(\"gk_x-1-py3-none-any.whl\",\"w\"); i=\"gk_x-1.dist-info/\"
z.writestr(\"gk_x.py\",\"print(7)\"); z.writestr(i+\"METADATA\",\"Metadata-Version: 2.1\\nName: gk_x\\nVersion: 1\\n\")
z.writestr(i+\"WHEEL\",\"Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n\")
z.writestr(i+\"RECORD\",\"\"); z.close()' &&
/usr/bin/python3 -m venv v && v/bin/pip install -q --no-index --disable-pip-version-check ./gk_x-1-py3-none-any.whl && v/bin/python -m gk_x",
    ),
    (
        "git",
        "git init -q r && cd r && echo x > x && git add x && git -c user.name=n -c user.email=e@x commit -qm m && \
         git clone -q . ../c && git -C ../c log --format=%s",
    ),
    ("gcc", "printf '#include <stdio.h>\\nint main(){puts(\"built\");return 0;}' > m.c && gcc -O2 m.c -o m && ./m"),
    ("make", "printf 'a: b\\n\\tcp b a\\nb:\\n\\techo x > b\\n' > Makefile && make -s -j2 && cat a"),
    ("/mnt/rust/bin/cargo", "export CARGO_HOME=$PWD/c PATH=/mnt/rust/bin:$PATH; cargo new -q p --vcs none && cd p && cargo run -q --offline"),
    (
        "npm",
        "mkdir p && echo '{\"name\":\"p\",\"version\":\"1.0.0\"}' > p/package.json && echo 'console.log(6)' > p/index.js && \
         npm init -y >/dev/null && npm install --offline --no-audit --no-fund --loglevel=error ./p >/dev/null && \
         node -e 'require(\"p\")'",
    ),
    ("sqlite3", "sqlite3 d 'pragma journal_mode=wal; create table t(a); insert into t values(5); select a from t;'"),
    (
        "/usr/lib/postgresql/15/bin/initdb",
        "b=/usr/lib/postgresql/15/bin; $b/initdb -D d -U me --no-sync >/dev/null && \
         $b/pg_ctl -w -D d -l l -o \"-k $PWD -c listen_addresses=\" start >/dev/null && \
         psql -h $PWD -U me -Atc 'create table t(a int); insert into t values(8); select a from t' postgres; \
         $b/pg_ctl -w -D d -m fast stop >/dev/null",
    ),
    ("perl", "perl -e 'if (my $p = fork) { kill 15, $p; waitpid $p, 0; print $? & 127, \"\\n\" } else { sleep 9 }'"),
    ("tar", "mkdir t && echo x > t/x && ln -s x t/l && tar czf t.tgz t && rm -r t && tar xzf t.tgz && mv t/x y && cat y && readlink t/l"),
];

fn run(place: Place, guard: Guard<'_>, options: &[&str], script: &str) -> Attempt {
    let mut stage = Stage::new(place).options(options);
    stage.honest = true;
    // A user of that number, as an image would have one, and the toolchain where that user can reach it.
    let rust = Path::new(env!("CARGO")).parent().unwrap().parent().unwrap().display().to_string();
    stage.before = format!(
        "mkdir -m 1777 /media/work /media/home; mkdir /mnt/rust; [ -x {rust}/bin/rustc ] && mount --bind {rust} /mnt/rust; \
         cp /etc/passwd /mnt/passwd; echo me:x:65532:65532::/media/home:/bin/sh >> /mnt/passwd; \
         mount --bind /mnt/passwd /etc/passwd; export HOME=/media/home PATH=/usr/local/bin:/usr/bin:/bin"
    );
    let script = format!("set -e; cd /media/work; {script}");
    stage.run(guard, &["sh", "-c", &script])
}

/// What each prints by itself; `None` where it is not here.
fn plain() -> &'static [Option<String>] {
    static PLAIN: OnceLock<Vec<Option<String>>> = OnceLock::new();
    PLAIN.get_or_init(|| {
        let alone = |(program, script): &(&str, &str)| {
            let there = ["", "/usr/local/bin/", "/usr/bin/", "/bin/"]
                .iter()
                .any(|dir| Path::new(&format!("{dir}{program}")).exists());
            if !there && !program.starts_with("/mnt/rust") {
                println!("skipped: {program} is not here");
                return None;
            }
            let plain = run(Pid1, Guard::Plain, &[], script);
            assert_eq!(plain.code, 0, "control: {program} has to work by itself: {plain:#?}");
            assert!(!plain.stdout.is_empty(), "{program}: {plain:#?}");
            Some(plain.stdout)
        };
        PROGRAMS.iter().map(alone).collect()
    })
}

fn each(options: &[&str], place: Place) {
    if !able() {
        return;
    }
    let mut ran = 0;
    for ((program, script), plain) in PROGRAMS.into_iter().zip(plain()) {
        let Some(plain) = plain else { continue };
        let guarded = run(place, Guard::Full, options, script);
        assert_eq!(guarded.code, 0, "{program} {place:?}: {guarded:#?}");
        assert_eq!(guarded.stdout.replace("left 0\n", ""), *plain, "{program} {place:?}: {guarded:#?}");
        for protection in ["landlock", "seccomp_filter", "audit_file"] {
            assert!(guarded.held(protection), "{program} {place:?}: {protection}: {guarded:#?}");
        }
        ran += 1;
    }
    assert!(ran >= 3, "a shell, tar and perl are everywhere");
}

#[test]
fn guard_breaks_none_of_them() {
    each(&["--network", "deny"], Pid1);
}

#[test]
fn guard_breaks_none_of_them_where_it_is_not_pid_1() {
    each(&[], Below);
}

#[test]
fn confined_lets_them_work_where_they_are_told_to() {
    each(&["--filesystem", "confined", "--workdir", "/media/work", "--writable", "/media/home"], Pid1);
}

/// The audit file in a directory that has others in it which programs need.
#[test]
fn guard_takes_no_more_than_it_has_to() {
    if !able() {
        return;
    }
    for (audit, wanted) in [
        ("/srv/audit.json", "/srv/job/out"),
        ("/srv/audit.json", "/media/out"),
        ("/opt/audit.json", "/opt/home/out"),
        ("/var/audit.json", "/var/tmp/out"),
        ("/var/audit.json", "/tmp/out"),
    ] {
        let run = |attack: &[&str]| {
            let mut stage = Stage::new(Pid1).options(&["--audit-file", audit, "--workdir", "/srv/job"]);
            stage.before =
                "for d in /srv /opt /var; do mount -t tmpfs -o mode=1777 none $d; done; export HOME=/opt/home; \
                 mkdir -m 1777 /srv/job /opt/home /var/tmp /var/log"
                    .into();
            stage.run(Guard::Full, attack)
        };
        let ran = run(&["create", wanted]);
        assert!(it_says(&ran) && ran.message.contains("\"landlock\":\"enforced\""), "{audit} {wanted}: {ran:#?}");
        // And the file itself is out of reach there as well.
        for attack in ["append", "unlink", "rename"] {
            assert!(!it_says(&run(&[attack, audit])), "{attack} {audit}");
        }
    }
}

#[test]
fn confined_is_confined() {
    if !able() {
        return;
    }
    // From "/", a container's usual working directory: that is no licence for the whole tree.
    three_ways(&Row {
        attack: &["create", "/media/elsewhere"],
        places: &[Pid1, Below],
        stopped_by: &["landlock"],
        also_off: "",
        options: &["--filesystem", "confined"],
        succeeded: it_says,
    });
    let create = |options: &[&str], path| {
        let options = [&["--filesystem", "confined"], options].concat();
        Stage::new(Pid1).options(&options).run(Guard::Full, &["create", path])
    };
    let named = create(&["--writable", "/media"], "/media/elsewhere");
    assert!(it_says(&named) && named.held("landlock"), "{named:#?}");
    let tmp = create(&[], "/dev/shm/x");
    assert!(it_says(&tmp) && tmp.held("landlock"), "{tmp:#?}");
    // Whoever makes everything writable is told that nothing is confined.
    for whole in ["/", "/media/.."] {
        let whole = create(&["--writable", whole], "/media/elsewhere");
        assert!(it_says(&whole) && !whole.held("landlock"), "{whole:#?}");
        assert!(whole.seal().unwrap()["enforcement_errors"]["landlock"].as_str().unwrap().contains("whole tree"));
    }
    // The score that makes the OOM killer take the workload first stays, since /proc is out of reach.
    assert!(tmp.held("oom_score_adj"), "{tmp:#?}");
}
