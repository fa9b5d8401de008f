import { render } from "preact";
import { ReportView } from "./components/ReportView";
import { LineView } from "./line/LineView";
import { Page } from "./page/Page";
import { readEmbedded } from "./embedded";
import { ViewerState } from "./state";
import "./style.css";

/** The browser's storage, where it allows access. */
function storage(): Storage | null {
  try {
    return localStorage;
  } catch {
    return null;
  }
}

function start(): void {
  const root = document.getElementById("viewer")!;
  if (root.dataset.view === "line") render(<LineView />, root);
  else if (!document.getElementById("data")) render(<Page />, root);
  else render(<ReportView state={new ViewerState(readEmbedded(document), storage())} />, root);
}

start();
