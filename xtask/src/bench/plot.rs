//! Lines over sequence length, as SVG that a README can show.
//!
//! Written by hand: a page of text output needs no drawing library, and labels at the ends of lines, as here, are what libraries
//! do not do.

use std::fmt::Write as _;

use sterna_bench::figures::thousands;

/// A figure: panels one above the other under one title.
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

const WIDTH: f64 = 780.0;
/// Title and subtitle.
const HEAD: f64 = 68.0;
/// A panel, and in it the area of the lines.
const HEIGHT: f64 = 370.0;
const TOP: f64 = 34.0;
const PLOT: f64 = 270.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 210.0;
/// Between the last length and the end of the axis.
const RIGHT_MARGIN: f64 = 8.0;
/// Height of a label with its note.
const LABEL: f64 = 34.0;

/// Told apart by people who see no red or no green too (Okabe and Ito).
const COLORS: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d"];
const REFERENCE: &str = "#6b7280";

impl Figure {
    /// The file's text.
    pub(super) fn to_svg(&self) -> String {
        let height = HEAD + HEIGHT * self.panels.len() as f64;
        let mut svg = format!(
            "\
<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\">
<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>
<text x=\"24\" y=\"32\" font-size=\"19\" font-weight=\"bold\" fill=\"#111827\">{}</text>
<text x=\"24\" y=\"54\" font-size=\"13\" fill=\"#4b5563\">{}</text>
",
            escaped(&self.title),
            escaped(&self.subtitle)
        );
        for (i, panel) in self.panels.iter().enumerate() {
            let _ = writeln!(svg, "<g transform=\"translate(0 {})\">", HEAD + HEIGHT * i as f64);
            panel.draw(&mut svg);
            svg += "</g>\n";
        }
        svg += "</svg>\n";
        svg
    }
}

impl Panel {
    fn draw(&self, svg: &mut String) {
        let axes = Axes::new(&self.lines);
        axes.draw(self, svg);
        let mut labels = Vec::new();
        let mut colors = COLORS.iter().cycle();
        for line in &self.lines {
            let color = if line.is_reference {
                REFERENCE
            } else {
                colors.next().copied().unwrap_or(REFERENCE)
            };
            match line.draw(&axes, color, svg) {
                // A line that ends early has room for its label there.
                Some((x, y)) if x < axes.right - RIGHT_MARGIN - 1.0 => {
                    line.draw_label((x + 10.0, y - 14.0), color, svg);
                }
                Some(at) => labels.push((at, line, color)),
                None => {}
            }
        }
        let wanted: Vec<f64> = labels.iter().map(|((_, y), ..)| *y).collect();
        let placed = spread(&wanted, LABEL, TOP + LABEL / 2.0, TOP + PLOT);
        for (((x, y), line, color), placed) in labels.into_iter().zip(placed) {
            let text = axes.right + 16.0;
            let _ = writeln!(
                svg,
                "<path d=\"M{:.1} {y:.1}L{:.1} {placed:.1}\" stroke=\"{color}\" stroke-width=\"1\" stroke-opacity=\"0.5\" fill=\"none\"/>",
                x + 5.0,
                text - 3.0,
            );
            line.draw_label((text, placed), color, svg);
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
            // Half of the words stay inside.
            let x = axes.x(*length).clamp(axes.left + 48.0, axes.right - 48.0);
            let y = TOP + 14.0;
            let _ = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"12\" text-anchor=\"middle\" fill=\"{color}\">\u{d7} out of memory</text>"
            );
        }
        points.last().copied()
    }

    /// Writes the label and its note, one above and one below `y`.
    fn draw_label(&self, (x, y): (f64, f64), color: &str, svg: &mut String) {
        let _ = write!(
            svg,
            "\
<text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"13\" font-weight=\"bold\" fill=\"{color}\">{}</text>
<text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"11.5\" fill=\"#4b5563\">{}</text>
",
            y - 1.0,
            escaped(&self.label),
            y + 13.0,
            escaped(&self.note)
        );
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
    fn new(lines: &[Line]) -> Self {
        let mut lengths: Vec<usize> =
            lines.iter().flat_map(|line| &line.points).map(|(length, _)| *length).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let values = lines.iter().flat_map(|line| &line.points).filter_map(|(_, value)| *value);
        let highest = values.fold(0.0, f64::max);
        let tick = nice_tick(highest);
        let ticks = ((highest / tick).ceil() as usize).max(1);
        Self { left: LEFT, right: WIDTH - RIGHT, lengths, tick, ticks }
    }

    fn x(&self, length: usize) -> f64 {
        let first = (*self.lengths.first().unwrap_or(&1) as f64).log2();
        let last = (*self.lengths.last().unwrap_or(&1) as f64).log2();
        let (left, right) = (self.left + 30.0, self.right - RIGHT_MARGIN);
        if last <= first {
            return f64::midpoint(left, right);
        }
        left + (right - left) * ((length as f64).log2() - first) / (last - first)
    }

    fn y(&self, value: f64) -> f64 {
        TOP + PLOT - PLOT * value / (self.tick * self.ticks as f64)
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
        let bottom = TOP + PLOT;
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
        let _ = writeln!(
            svg,
            "<text x=\"24\" y=\"{}\" font-size=\"12\" fill=\"#4b5563\">{}</text>",
            TOP - 14.0,
            escaped(panel.unit)
        );
        if let Some(title) = &panel.title {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{}\" font-size=\"14\" font-weight=\"bold\" text-anchor=\"middle\" fill=\"#111827\">{}</text>",
                f64::midpoint(*left, *right),
                TOP - 14.0,
                escaped(title)
            );
        }
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

    fn is_at(found: f64, expected: f64) -> bool {
        (found - expected).abs() < 1e-9
    }

    #[test]
    fn ticks_are_round_and_few() {
        for highest in [0.03, 0.9, 1.0, 4.9, 7.5, 15.4, 480.0, 1010.0] {
            let tick = nice_tick(highest);
            let count = highest / tick;
            assert!((2.5..7.6).contains(&count), "{highest}: {tick}");
        }
        assert!(is_at(nice_tick(15.4), 5.0) && is_at(nice_tick(480.0), 100.0));
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
        let axes = Axes::new(&lines);
        let steps = [axes.x(1024) - axes.x(512), axes.x(2048) - axes.x(1024)];
        assert!(is_at(steps[0], steps[1]) && steps[0] > 100.0);
        assert!(is_at(axes.y(0.0), TOP + PLOT));
        assert!(is_at(axes.y(axes.tick * axes.ticks as f64), TOP));
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
        <circle cx="94.0" cy="84.6" r="4" fill="#6b7280" stroke="#ffffff" stroke-width="1.2"/>
        <text x="522.0" y="48.0" font-size="12" text-anchor="middle" fill="#6b7280">× out of memory</text>
        <path d="M94.0 179.1L562.0 138.6" stroke="#0072b2" stroke-width="2.5" fill="none" stroke-linejoin="round"/>
        <circle cx="94.0" cy="179.1" r="4" fill="#0072b2" stroke="#ffffff" stroke-width="1.2"/>
        <circle cx="562.0" cy="138.6" r="4" fill="#0072b2" stroke="#ffffff" stroke-width="1.2"/>
        <text x="586.0" y="137.6" font-size="13" font-weight="bold" fill="#0072b2">a &lt; b</text>
        "##);
    }
}
