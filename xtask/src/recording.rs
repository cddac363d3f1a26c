//! `cargo xtask recording`: records an animation of the demo for the book.

use std::{fmt::Write as _, fs};

use anyhow::{Context as _, Result, ensure};

use crate::{
    build::{Aim, PRODUCT, programs},
    command::{built, ensure_root, output, program, root},
    setup::{Purpose, setup},
};

/// The path of the animation's file.
const FILE: &str = "docs/src/kill.svg";

/// How the screen's line with the current step begins, during the recorded step and during the next step.
const SHOWN: [&str; 2] = [" ► web1 is killed", " ► web1 is back"];

/// The number of frames that the animation shows before the recorded step.
const BEFORE: usize = 2;

/// The height of a text line in pixels.
const LINE: usize = 17;
const LETTER: f64 = 7.8;
const MARGIN: usize = 12;

/// Runs the demo until a server has been killed, and writes the last frames, one per second.
pub(crate) fn recording() -> Result<()> {
    ensure_root("the demo", "recording")?;
    setup(Purpose::Run)?;
    programs(PRODUCT, Aim::Demo)?;
    let balancer = built("debug")?.join("balancer");
    println!("Running the demo for a minute");
    // Use a terminal, because the demo draws every second only on a terminal. The demo's input is empty, because a key
    // press would end the tour.
    let command = format!("exec {} demo --seconds 54 < /dev/null", balancer.display());
    let text = output(program("script").args(["--quiet", "--return", "--command", &command, "/dev/null"]));
    let frames = frames(&text.context("the demo failed, or there is no `script`")?);
    let found = SHOWN.map(|line| frames.iter().position(|frame| frame.contains(line)));
    let [Some(begin), Some(end)] = found else { anyhow::bail!("the demo did not show the step") };
    ensure!(begin >= BEFORE, "the demo showed nothing before the step");
    // Leave out the first frame of the next step, because this frame shows no effect of the step yet.
    fs::write(root().join(FILE), svg(&frames[begin - BEFORE..end])).context(FILE)?;
    println!("{FILE}: {} pictures", end - begin + BEFORE);
    Ok(())
}

/// Returns the frames that the screen showed, one for each redraw.
fn frames(text: &str) -> Vec<String> {
    let text = text.replace('\r', "");
    // The demo disables line wrapping while it draws.
    let drawn = text.split("\x1b[?7l").skip(1);
    drawn.filter_map(|frame| Some(frame.split_once("\x1b[?7h")?.0.trim_end().to_owned())).collect()
}

/// Makes an SVG animation that shows each frame for a second.
fn svg(frames: &[String]) -> String {
    let lines = |count: fn(&str) -> usize| frames.iter().map(|frame| count(frame)).max().unwrap_or(0);
    let height = lines(|frame| frame.lines().count()) * LINE + 2 * MARGIN;
    let letters = lines(|frame| frame.lines().map(|line| line.chars().count()).max().unwrap_or(0));
    let width = (letters as f64 * LETTER) as usize + 2 * MARGIN;
    let count = frames.len().max(1);
    let share = 100.0 / count as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\">\n\
         <title>balancer demo: a server is killed; its clients move, nobody else does</title>\n\
         <style>\n\
         text {{ font: 13px monospace; fill: #d6deeb; white-space: pre }}\n\
         .now {{ fill: #ffcb6b }}\n\
         .down {{ fill: #ff7b72 }}\n\
         g {{ visibility: hidden; animation: show {count}s step-end infinite }}\n\
         @keyframes show {{ 0% {{ visibility: visible }} {share:.3}% {{ visibility: hidden }} }}\n\
         @media (prefers-reduced-motion) {{ g {{ animation: none }} g:last-of-type {{ visibility: visible }} }}\n\
         </style>\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"#0d1117\"/>\n"
    );
    for (second, frame) in frames.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = writeln!(svg, "<g style=\"animation-delay: {second}s\">");
        for (number, line) in frame.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let y = MARGIN + (number + 1) * LINE - 4;
            let class = class(line).map_or_else(String::new, |class| format!(" class=\"{class}\""));
            let _ =
                writeln!(svg, "<text x=\"{MARGIN}\" y=\"{y}\"{class} xml:space=\"preserve\">{}</text>", escaped(line));
        }
        svg += "</g>\n";
    }
    svg + "</svg>\n"
}

fn class(line: &str) -> Option<&'static str> {
    if line.starts_with(" ►") {
        Some("now")
    } else if line.split_whitespace().any(|word| word == "down") {
        Some("down")
    } else {
        None
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::{frames, svg};

    #[test]
    fn when_the_screen_is_drawn_then_each_drawing_is_a_frame() {
        let text = "Balancer on eth0\r\n\x1b[?7l a <b>\r\n ► one\r\n\r\n\x1b[?7h\x1b[3F\x1b[J\x1b[?7l c\r\n\x1b[?7h";
        let frames = frames(text);
        assert_eq!(frames, [" a <b>\n ► one", " c"]);
        let svg = svg(&frames);
        assert!(svg.contains("> a &lt;b&gt;</text>") && svg.contains("class=\"now\""), "{svg}");
        assert_eq!(svg.matches("<g ").count(), 2);
        assert!(svg.contains("50.000% { visibility: hidden }"), "{svg}");
    }
}
