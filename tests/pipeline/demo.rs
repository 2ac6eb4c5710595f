//! `streamgauge demo`: the first thing that a newcomer runs.

use std::time::Duration;

use streamgauge_tests::broker::{free_port, only_streamgauge, streamgauge};
use streamgauge_tests::process::run;

const TIME_MAX: Duration = Duration::from_secs(90);

#[test]
fn the_demo_shows_results_and_goes_on_where_it_was() {
    if only_streamgauge("the demo") {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    for round in ["first", "second"] {
        let mut demo = streamgauge();
        demo.args([
            "demo",
            "--duration",
            "15s",
            "--listen",
            &format!("127.0.0.1:{}", free_port()),
        ]);
        demo.arg("--data-dir").arg(directory.path());
        let said = run(demo, TIME_MAX).expect_success(&format!("the {round} demo"));
        let results = said
            .lines()
            .filter(|line| line.contains("revenue") || line.contains("orders"))
            .count();
        assert!(results >= 2, "the {round} demo showed no results:\n{said}");
    }
}
