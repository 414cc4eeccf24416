//! Lines over sequence length, as SVG that a README can show.
//!
//! Written by hand: a page of text output needs no drawing library, and labels at the ends of lines, as here, are what libraries
//! do not do.

use std::fmt::Write as _;

use super::table::thousands;

/// A figure: panels side by side under one title.
pub(super) struct Figure {
    pub(super) title: String,
    pub(super) subtitle: String,
    pub(super) panels: Vec<Panel>,
}

/// One pair of axes: sequence length, by powers of two, and a value from 0 on.
pub(super) struct Panel {
    pub(super) title: Option<String>,
    pub(super) unit: &'static str,
    pub(super) lines: Vec<Line>,
}

/// One line with a label at its end.
pub(super) struct Line {
    pub(super) label: String,
    /// A second, smaller line of the label.
    pub(super) note: String,
    /// Whether it is the reference, drawn dashed and grey.
    pub(super) is_reference: bool,
    /// Sequence length and value; without a value where the run ended for lack of memory.
    pub(super) points: Vec<(usize, Option<f64>)>,
}

const PANEL_WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 92.0;
const BOTTOM: f64 = 58.0;
/// Height of a label with its note.
const LABEL: f64 = 34.0;

/// Told apart by people who see no red or no green too (Okabe and Ito).
const COLORS: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d"];
const REFERENCE: &str = "#6b7280";

impl Figure {
    /// The file's text.
    pub(super) fn to_svg(&self) -> String {
        let width = PANEL_WIDTH * self.panels.len() as f64;
        let mut svg = format!(
            "\
<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{HEIGHT}\" viewBox=\"0 0 {width} {HEIGHT}\" font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\">
<rect width=\"{width}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>
<text x=\"24\" y=\"32\" font-size=\"19\" font-weight=\"bold\" fill=\"#111827\">{}</text>
<text x=\"24\" y=\"54\" font-size=\"13\" fill=\"#4b5563\">{}</text>
",
            escaped(&self.title),
            escaped(&self.subtitle)
        );
        for (i, panel) in self.panels.iter().enumerate() {
            panel.draw(PANEL_WIDTH * i as f64, &mut svg);
        }
        svg += "</svg>\n";
        svg
    }
}

impl Panel {
    fn draw(&self, left: f64, svg: &mut String) {
        let axes = Axes::new(left, &self.lines);
        axes.draw(self, svg);
        let mut labels = Vec::new();
        let mut colors = COLORS.iter().cycle();
        for line in &self.lines {
            let color = if line.is_reference {
                REFERENCE
            } else {
                colors.next().copied().unwrap_or(REFERENCE)
            };
            if let Some(at) = line.draw(&axes, color, svg) {
                labels.push((at, line, color));
            }
        }
        let wanted: Vec<f64> = labels.iter().map(|((_, y), ..)| *y).collect();
        let placed = spread(&wanted, LABEL, TOP + LABEL / 2.0, HEIGHT - BOTTOM);
        for (((x, y), line, color), placed) in labels.into_iter().zip(placed) {
            let text = axes.right + 16.0;
            let _ = write!(
                svg,
                "\
<path d=\"M{:.1} {y:.1}L{:.1} {placed:.1}\" stroke=\"{color}\" stroke-width=\"1\" stroke-opacity=\"0.5\" fill=\"none\"/>
<text x=\"{text:.1}\" y=\"{:.1}\" font-size=\"13\" font-weight=\"bold\" fill=\"{color}\">{}</text>
<text x=\"{text:.1}\" y=\"{:.1}\" font-size=\"11.5\" fill=\"#4b5563\">{}</text>
",
                x + 5.0,
                text - 3.0,
                placed - 1.0,
                escaped(&line.label),
                placed + 13.0,
                escaped(&line.note)
            );
        }
    }
}

impl Line {
    /// Draws the line and its points; returns where its label belongs.
    fn draw(&self, axes: &Axes, color: &str, svg: &mut String) -> Option<(f64, f64)> {
        let place =
            |(length, value): &(usize, Option<f64>)| Some((axes.x(*length), axes.y((*value)?)));
        let points: Vec<(f64, f64)> = self.points.iter().filter_map(place).collect();
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        let dashes = if self.is_reference { " stroke-dasharray=\"7 4\"" } else { "" };
        if points.len() > 1 {
            let _ = writeln!(
                svg,
                "<path d=\"M{}\" stroke=\"{color}\" stroke-width=\"2.5\" fill=\"none\" stroke-linejoin=\"round\"{dashes}/>",
                path.join("L")
            );
        }
        for (x, y) in &points {
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{color}\" stroke=\"#ffffff\" stroke-width=\"1.2\"/>"
            );
        }
        let lost = self.points.iter().filter(|(_, value)| value.is_none());
        for (length, _) in lost.clone() {
            let (x, y) = (axes.x(*length), TOP - 6.0);
            let _ = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"12\" text-anchor=\"middle\" fill=\"{color}\">\u{d7} out of memory</text>"
            );
        }
        points.last().copied()
    }
}

/// Where values are on the page.
struct Axes {
    left: f64,
    right: f64,
    lengths: Vec<usize>,
    /// Distance of two ticks, and the number of them above 0.
    tick: f64,
    ticks: usize,
}

impl Axes {
    fn new(left: f64, lines: &[Line]) -> Self {
        let mut lengths: Vec<usize> =
            lines.iter().flat_map(|line| &line.points).map(|(length, _)| *length).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let values = lines.iter().flat_map(|line| &line.points).filter_map(|(_, value)| *value);
        let highest = values.fold(0.0, f64::max);
        let tick = nice_tick(highest);
        let ticks = ((highest / tick).ceil() as usize).max(1);
        Self { left: left + LEFT, right: left + PANEL_WIDTH - RIGHT, lengths, tick, ticks }
    }

    fn x(&self, length: usize) -> f64 {
        let first = (*self.lengths.first().unwrap_or(&1) as f64).log2();
        let last = (*self.lengths.last().unwrap_or(&1) as f64).log2();
        let (left, right) = (self.left + 30.0, self.right - 8.0);
        if last <= first {
            return f64::midpoint(left, right);
        }
        left + (right - left) * ((length as f64).log2() - first) / (last - first)
    }

    fn y(&self, value: f64) -> f64 {
        let bottom = HEIGHT - BOTTOM;
        bottom - (bottom - TOP) * value / (self.tick * self.ticks as f64)
    }

    fn draw(&self, panel: &Panel, svg: &mut String) {
        let Self { left, right, .. } = self;
        for i in 0..=self.ticks {
            let value = self.tick * i as f64;
            let y = self.y(value);
            let color = if i == 0 { "#9ca3af" } else { "#e5e7eb" };
            let _ = write!(
                svg,
                "\
<path d=\"M{left} {y:.1}H{right}\" stroke=\"{color}\" stroke-width=\"1\"/>
<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"12\" text-anchor=\"end\" fill=\"#4b5563\">{}</text>
",
                left - 8.0,
                y + 4.0,
                tick_label(value, self.tick)
            );
        }
        let bottom = HEIGHT - BOTTOM;
        for &length in &self.lengths {
            let x = self.x(length);
            let _ = write!(
                svg,
                "\
<path d=\"M{x:.1} {bottom}v5\" stroke=\"#9ca3af\" stroke-width=\"1\"/>
<text x=\"{x:.1}\" y=\"{}\" font-size=\"12\" text-anchor=\"middle\" fill=\"#4b5563\">{}</text>
",
                bottom + 20.0,
                thousands(length)
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" font-size=\"12\" text-anchor=\"middle\" fill=\"#4b5563\">tokens in the sequence</text>",
            f64::midpoint(*left, *right),
            bottom + 42.0
        );
        let unit = match &panel.title {
            Some(title) => format!("{}: {title}", panel.unit),
            None => panel.unit.to_owned(),
        };
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" font-size=\"12\" fill=\"#4b5563\">{}</text>",
            left - 40.0,
            TOP - 14.0,
            escaped(&unit)
        );
    }
}

/// The distance of ticks, 1, 2 or 5 times a power of ten, that makes three to seven of them up to `highest`.
fn nice_tick(highest: f64) -> f64 {
    if highest <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf((highest / 3.0).log10().floor());
    [5.0, 2.0, 1.0]
        .map(|times| times * power)
        .into_iter()
        .find(|tick| highest / tick >= 2.5)
        .unwrap_or(power)
}

fn tick_label(value: f64, tick: f64) -> String {
    if tick >= 1.0 {
        return thousands(value.round() as usize);
    }
    let decimals = (-tick.log10()).ceil() as usize;
    format!("{value:.decimals$}")
}

/// Positions as close to `wanted` as can be with `distance` between any two, inside `low..=high` while there is room.
fn spread(wanted: &[f64], distance: f64, low: f64, high: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|a, b| wanted[*a].total_cmp(&wanted[*b]));
    let mut placed = wanted.to_vec();
    let mut floor = low;
    for &i in &order {
        placed[i] = placed[i].max(floor);
        floor = placed[i] + distance;
    }
    let mut ceiling = high;
    for &i in order.iter().rev() {
        placed[i] = placed[i].min(ceiling);
        ceiling = placed[i] - distance;
    }
    placed
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(label: &str, is_reference: bool, points: &[(usize, Option<f64>)]) -> Line {
        let note = "+90 KB a token".to_owned();
        Line { label: label.to_owned(), note, is_reference, points: points.to_vec() }
    }

    #[test]
    fn ticks_are_round_and_few() {
        for highest in [0.03, 0.9, 1.0, 4.9, 7.5, 15.4, 480.0, 1010.0] {
            let tick = nice_tick(highest);
            let count = highest / tick;
            assert!((2.5..7.6).contains(&count), "{highest}: {tick}");
        }
        assert_eq!([nice_tick(15.4), nice_tick(480.0)], [5.0, 100.0]);
        assert_eq!(tick_label(0.25, 0.05), "0.25");
        assert_eq!(tick_label(1500.0, 500.0), "1,500");
    }

    #[test]
    fn labels_keep_their_distance_and_their_order() {
        assert_eq!(spread(&[100.0, 300.0], 20.0, 0.0, 400.0), [100.0, 300.0]);
        assert_eq!(spread(&[105.0, 100.0, 101.0], 20.0, 0.0, 400.0), [140.0, 100.0, 120.0]);
        assert_eq!(spread(&[395.0, 399.0], 20.0, 0.0, 400.0), [380.0, 400.0]);
    }

    #[test]
    fn lengths_double_at_equal_distances_and_values_start_at_zero() {
        let lines = [line("a", false, &[(512, Some(1.0)), (1024, Some(2.0)), (2048, None)])];
        let axes = Axes::new(0.0, &lines);
        let steps = [axes.x(1024) - axes.x(512), axes.x(2048) - axes.x(1024)];
        assert!((steps[0] - steps[1]).abs() < 1e-9 && steps[0] > 100.0);
        let ends = [axes.y(0.0), axes.y(axes.tick * axes.ticks as f64)];
        assert_eq!(ends, [HEIGHT - BOTTOM, TOP]);
    }

    #[test]
    fn a_figure_draws_lines_points_labels_and_what_ran_out_of_memory() {
        let lines = vec![
            line("reference", true, &[(4096, Some(6.5)), (16384, None)]),
            line("a < b", false, &[(4096, Some(3.7)), (16384, Some(4.9))]),
        ];
        let panels = vec![Panel { title: None, unit: "GB", lines }];
        let figure = Figure { title: "Peak".to_owned(), subtitle: "s".to_owned(), panels };
        let svg = figure.to_svg();
        let shapes: Vec<&str> = svg
            .lines()
            .filter(|line| {
                line.starts_with("<circle")
                    || line.contains("out of memory")
                    || line.contains("a &lt; b")
                    || line.contains("stroke-width=\"2.5\"")
            })
            .collect();
        insta::assert_snapshot!(shapes.join("\n"), @r##"
        <circle cx="94.0" cy="146.4" r="4" fill="#6b7280" stroke="#ffffff" stroke-width="1.2"/>
        <text x="562.0" y="86.0" font-size="12" text-anchor="middle" fill="#6b7280">× out of memory</text>
        <path d="M94.0 247.9L562.0 204.4" stroke="#0072b2" stroke-width="2.5" fill="none" stroke-linejoin="round"/>
        <circle cx="94.0" cy="247.9" r="4" fill="#0072b2" stroke="#ffffff" stroke-width="1.2"/>
        <circle cx="562.0" cy="204.4" r="4" fill="#0072b2" stroke="#ffffff" stroke-width="1.2"/>
        <text x="586.0" y="203.4" font-size="13" font-weight="bold" fill="#0072b2">a &lt; b</text>
        "##);
    }
}
