//! A terminal for a command: what is typed, and what stands on its screen then.

use std::io::{Read as _, Write as _};
use std::num::NonZeroU16;
use std::process::{Child, ExitStatus};
use std::sync::Arc;

use parking_lot::Mutex;
use pty_process::Size;
use pty_process::blocking::{Command, Pty, open};

use crate::quiet;
use crate::support::{BOUND, eventually_blocking};

pub(crate) struct Terminal {
    pty: Arc<Pty>,
    screen: Arc<Mutex<vt100::Parser>>,
    child: Child,
}

impl Terminal {
    /// 80 × 24.
    pub(crate) fn start(url: &str, program: &str, arguments: &[&str]) -> Self {
        let (rows, columns) = (NonZeroU16::new(24).unwrap(), NonZeroU16::new(80).unwrap());
        let (pty, pts) = open().unwrap();
        pty.resize(Size::new(24, 80)).unwrap();
        let mut command = Command::new(program)
            .args(arguments)
            .env("TERM", "xterm-256color")
            .env("RELATCH_REDIS", url);
        let mut names = Vec::new();
        quiet(|name, value| names.push((name.to_owned(), value.map(str::to_owned))));
        for (name, value) in names {
            command = match value {
                Some(value) => command.env(name, value),
                None if name == "RELATCH_REDIS" => command,
                None => command.env_remove(name),
            };
        }
        let child = command.spawn(pts).unwrap();
        let pty = Arc::new(pty);
        let screen = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        let (from, to) = (pty.clone(), screen.clone());
        // Ends when nobody has the other side open any more.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read) = (&*from).read(&mut bytes) {
                if read == 0 {
                    return;
                }
                to.lock().process(&bytes[..read]);
            }
        });
        Self { pty, screen, child }
    }

    pub(crate) fn type_in(&self, keys: &str) {
        (&*self.pty).write_all(keys.as_bytes()).unwrap();
    }

    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        // Both at once: what is drawn for the new size must not be read by a screen of the old.
        let mut screen = self.screen.lock();
        self.pty.resize(Size::new(rows, columns)).unwrap();
        let (rows, columns) = (NonZeroU16::new(rows).unwrap(), NonZeroU16::new(columns).unwrap());
        screen.screen_mut().set_size(rows, columns);
    }

    pub(crate) fn shows(&self) -> String {
        self.screen.lock().screen().contents()
    }

    #[track_caller]
    pub(crate) fn until(&self, what: &str, condition: impl Fn(&str) -> bool) {
        let mut seen = String::new();
        let mut met = false;
        let end = std::time::Instant::now() + BOUND;
        while !met && std::time::Instant::now() < end {
            seen = self.shows();
            met = condition(&seen);
            if !met {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
        assert!(met, "{what}; the screen shows:\n{seen}");
    }

    #[track_caller]
    pub(crate) fn until_it_shows(&self, words: &str) {
        self.until(words, |seen| seen.contains(words));
    }

    pub(crate) fn screen<T>(&self, look: impl FnOnce(&vt100::Screen) -> T) -> T {
        look(self.screen.lock().screen())
    }

    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    #[track_caller]
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        eventually_blocking(BOUND, "the command ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        crate::end_session(self.child.id());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
