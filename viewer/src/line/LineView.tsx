import { useEffect, useRef, useState } from "preact/hooks";
import { Banner, Logo } from "../components/Header";
import { count } from "../format";
import { decide, overlayAddress, readState, type JudgedImage, type LineState } from "./api";

const EVERY_MS = 1000;
const WORDS: Record<string, string> = { ok: "OK", ng: "NG", error: "ERROR" };
const clock = (seconds: number): string => new Date(seconds * 1000).toLocaleTimeString();

/** The operator's view: the latest verdict large, counters of the shift, recent rejects and their review. */
export function LineView() {
  const [state, setState] = useState<LineState | null>(null);
  const [trouble, setTrouble] = useState("");
  const [chosen, setChosen] = useState<string | null>(null);
  // What a key acts on: the image that is marked now, whatever was rejected since and whatever is yet to be drawn.
  const now = useRef<{ rejects: JudgedImage[]; chosen: string | null }>({ rejects: [], chosen: null });
  const choose = (path: string | null): void => { now.current.chosen = path; setChosen(path); };
  const show = (found: LineState): void => {
    now.current.rejects = found.rejects;
    if (!found.rejects.some((image) => image.path === now.current.chosen)) choose(found.rejects[0]?.path ?? null);
    setState(found);
    setTrouble("");
  };
  const refresh = (): Promise<void> =>
    readState().then(show, (error: Error) => setTrouble(`The view is not up to date: ${error.message}`));
  const review = (image: JudgedImage | undefined, decision: "accept" | "reject" | "undo", note = image?.note ?? ""): void => {
    if (image) void decide(image.path, decision, note).then(refresh, (error: Error) => setTrouble(error.message));
  };
  useEffect(() => {
    void refresh();
    const timer = setInterval(() => void refresh(), EVERY_MS);
    return () => clearInterval(timer);
  }, []);
  useEffect(() => {
    const onKey = (event: KeyboardEvent): void => {
      const { rejects } = now.current, index = rejects.findIndex((one) => one.path === now.current.chosen), image = rejects[index];
      if (!image || event.ctrlKey || event.metaKey || (event.target as HTMLElement).matches("input")) return;
      const key = event.key.toLowerCase();
      if (key === "arrowright") choose(rejects[Math.min(index + 1, rejects.length - 1)].path);
      else if (key === "arrowleft") choose(rejects[Math.max(index - 1, 0)].path);
      else if (key === "a") review(image, "accept");
      else if (key === "r") review(image, "reject");
      else if (key === "u") review(image, "undo");
      else return;
      event.preventDefault();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  if (!state) return <main class="operator"><p class="panel welcome" role="status">{trouble || "Reading the watch …"}</p></main>;
  const { latest, counts, rejects } = state;
  return (
    <main class="operator">
      <header>
        <div class="kicker"><Logo /><b>clipspect</b> line</div>
        <h1>{state.object[0].toUpperCase() + state.object.slice(1)}</h1>
        <p class="meta">{state.profile}</p>
      </header>
      {trouble && <Banner title="No connection" kind="loud">{trouble}</Banner>}
      {(state.waiting > 0 || state.givenUp > 0) && (
        <Banner title="Actions wait" kind="plain">
          {count(state.waiting, "action")} wait for their target{state.givenUp > 0 && `, ${state.givenUp} were given up (dead-letters.jsonl)`}.
        </Banner>
      )}
      <div class="operator-top">
        <section class={`panel verdict-panel ${latest?.place ?? ""}`} aria-label="Latest image" aria-live="polite">
          {latest ? (
            <>
              <div class="verdict-word" id="verdict">{WORDS[latest.place]}</div>
              <div>
                <b id="latest-name">{latest.path}</b>
                <p class="meta">
                  {clock(latest.time)}
                  {latest.score !== null && ` · score ${latest.score.toFixed(3)}, flagged from ${(latest.threshold ?? 0.5).toFixed(2)}`}
                  {latest.reason && ` · ${latest.reason}`}
                </p>
              </div>
              {latest.place !== "error" && <img src={`/v1/line/latest.png?${latest.time}`} alt={`${latest.path} with its heatmap`} />}
            </>
          ) : <p class="welcome">No image has been judged yet.</p>}
        </section>
        <section class="panel counts operator-counts" aria-label="This shift">
          {(["ok", "ng", "error"] as const).map((place) => (
            <div key={place} class={`${{ ok: "clean", ng: "flagged", error: "failed" }[place]}${counts[place] ? "" : " zero"}`}>
              <span class="number" id={`count-${place}`}>{counts[place]}</span>
              <span class="label">{WORDS[place]}</span>
            </div>
          ))}
          <div><span class="number">{counts.ok + counts.ng ? `${((100 * counts.ng) / (counts.ok + counts.ng)).toFixed(1)} %` : "–"}</span>
            <span class="label">NG since {state.since.slice(11)}</span></div>
        </section>
      </div>
      <h2>Recent rejects</h2>
      <p class="facts">Arrow keys choose an image; A accepts it as good, R confirms the defect, U takes the decision back.</p>
      {rejects.length === 0 && <p class="panel welcome">None.</p>}
      <ol class="rejects">
        {rejects.map((image) => (
          <li key={image.path} class={`panel${image.path === chosen ? " chosen" : ""}`} aria-current={image.path === chosen} onClick={() => choose(image.path)}>
            {image.overlay && <img loading="lazy" src={overlayAddress(image)} alt={`${image.path} with its heatmap`} />}
            <b>{image.path}</b>
            <p class="meta">{clock(image.time)} · {image.score?.toFixed(3)}{image.decision && <b class={`decision ${image.decision}`}> · {image.decision}ed</b>}</p>
            <input type="text" aria-label={`Note on ${image.path}`} placeholder="Note" value={image.note} maxLength={2000}
              onChange={(event) => review(image, image.decision ?? "reject", event.currentTarget.value)} />
            <span class="drop-buttons">
              <button type="button" class="small" aria-pressed={image.decision === "accept"} onClick={() => review(image, "accept")}>Accept</button>
              <button type="button" class="small" aria-pressed={image.decision === "reject"} onClick={() => review(image, "reject")}>Reject</button>
              {image.decision && <button type="button" class="small" onClick={() => review(image, "undo")}>Undo</button>}
            </span>
          </li>
        ))}
      </ol>
    </main>
  );
}
