import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { flushSync } from "preact/compat";
import { drawAll } from "../draw";
import { count } from "../format";
import type { Group, ViewerState } from "../state";
import { Card } from "./Card";

const GAP = 16, NARROW_GAP = 10, MIN_WIDTH = 220, ABOUT = 108, TITLE = 46;
/** Pixels above and below the window in which cards exist. */
const AHEAD = 600;
/** Most cards of a printed report. */
const PRINTED = 500;

interface Line {
  top: number;
  height: number;
  title?: string;
  items: number[];
}

export function layOut(groups: Group[], columns: number, cardHeight: number, gap: number, titled: boolean): { lines: Line[]; height: number } {
  const lines: Line[] = [];
  let top = 0;
  for (const group of groups) {
    if (titled) {
      lines.push({ top, height: TITLE, title: `${group.title} · ${count(group.items.length, "image")}`, items: [] });
      top += TITLE;
    }
    for (let i = 0; i < group.items.length; i += columns) {
      lines.push({ top, height: cardHeight, items: group.items.slice(i, i + columns) });
      top += cardHeight + gap;
    }
  }
  return { lines, height: top };
}

/** Index of the first line that ends below a place. */
export function firstLine(lines: Line[], place: number): number {
  let low = 0, high = lines.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (lines[middle].top + lines[middle].height < place) low = middle + 1;
    else high = middle;
  }
  return low;
}

const EMPTY: Record<string, string> = {
  errors: "No image failed.",
  mistakes: "No mistake at this threshold.",
  unreviewed: "Every image has been reviewed.",
  accept: "No image has been accepted.",
  reject: "No image has been rejected.",
};

function emptyText(state: ViewerState): string {
  if (state.filter.value === "errors") return state.report.failed ? "" : EMPTY.errors;
  if (!state.rows.length) return "No image could be scored.";
  if (state.search.value.trim()) return `No name contains “${state.search.value.trim()}” in this selection.`;
  const word = state.report.words[state.filter.value];
  return EMPTY[state.filter.value] ?? `No image is ${word ?? "of this kind"} at this threshold.`;
}

/** Cards of the visible images. Only those near the window exist, so that 10,000 images stay usable. */
export function Gallery({ state }: { state: ViewerState }) {
  const box = useRef<HTMLElement>(null), [width, setWidth] = useState(0), [scroll, setScroll] = useState(0), [printing, setPrinting] = useState(false);
  useLayoutEffect(() => {
    const measure = (): void => {
      if (!box.current) return;
      setWidth(box.current.clientWidth);
      setScroll(-box.current.getBoundingClientRect().top);
    };
    const observer = new ResizeObserver(measure), print = (on: boolean) => () => { flushSync(() => setPrinting(on)); drawAll(); };
    const [before, after] = [print(true), print(false)];
    measure();
    observer.observe(document.body);
    addEventListener("scroll", measure, { passive: true });
    addEventListener("beforeprint", before);
    addEventListener("afterprint", after);
    return () => {
      observer.disconnect();
      removeEventListener("scroll", measure);
      removeEventListener("beforeprint", before);
      removeEventListener("afterprint", after);
    };
  }, []);
  const groups = state.groups.value, titled = state.group.value !== "none", shown = state.visible.value;
  const narrow = width < 560, gap = narrow ? NARROW_GAP : GAP;
  const columns = narrow ? 2 : Math.max(1, Math.floor((width + gap) / (MIN_WIDTH + gap)));
  const column = (width - gap * (columns - 1)) / columns, cardHeight = Math.round(column * 0.75) + ABOUT;
  const { lines, height } = layOut(groups, columns, cardHeight, gap, titled);
  useEffect(() => {
    const index = state.open.value;
    if (index !== null) return;
    lastOpen.current !== null && box.current?.querySelector<HTMLElement>(`[data-index="${lastOpen.current}"]`)?.focus();
  }, [state.open.value]);
  const lastOpen = useRef<number | null>(null);
  if (state.open.value !== null) lastOpen.current = state.open.value;
  const text = shown.length ? "" : emptyText(state);
  const key = (event: KeyboardEvent): void => moveFocus(event, box.current!, state, columns, lines);
  const note = state.filter.value === "errors" ? "" : `${count(shown.length, "image")} shown`;
  if (printing)
    return <section class="gallery printed" id="gallery">{shown.slice(0, PRINTED).map((index) => <Card state={state} index={index} key={index} />)}</section>;
  const start = firstLine(lines, scroll - AHEAD);
  const visible = width ? lines.slice(start).filter((line) => line.top < scroll + innerHeight + AHEAD) : [];
  return <>
    <p class="shown" id="shown" role="status">{note}</p>
    <section class="gallery" id="gallery" aria-label="Images" ref={box} style={{ height: `${text ? 140 : height}px` }} onKeyDown={key}>
      {text && <p class="empty">{text}</p>}
      {visible.map((line) => line.title !== undefined
        ? <h2 class="group-title" key={line.title} style={{ top: `${line.top}px` }}>{line.title}</h2>
        : <div class="row" key={line.top} style={{ top: `${line.top}px`, height: `${line.height}px`, gap: `${gap}px` }}>
          {line.items.map((index) => <div class="cell" key={index} style={{ width: `${column}px` }}><Card state={state} index={index} /></div>)}
        </div>)}
    </section>
  </>;
}

/** Arrow keys move between cards; the page scrolls along. */
function moveFocus(event: KeyboardEvent, box: HTMLElement, state: ViewerState, columns: number, lines: Line[]): void {
  const steps: Record<string, number> = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
  const step = steps[event.key], current = (event.target as HTMLElement).dataset.index;
  if (!step || current === undefined) return;
  event.preventDefault();
  const shown = state.visible.value, at = shown.indexOf(Number(current)) + step;
  if (at < 0 || at >= shown.length) return;
  const line = lines.find((one) => one.items.includes(shown[at]));
  const focus = (): boolean => {
    const card = box.querySelector<HTMLElement>(`[data-index="${shown[at]}"]`);
    card?.focus();
    return card !== null;
  };
  if (!focus() && line) {
    scrollTo({ top: box.getBoundingClientRect().top + scrollY + line.top - innerHeight / 3 });
    requestAnimationFrame(() => requestAnimationFrame(focus));
  }
}
